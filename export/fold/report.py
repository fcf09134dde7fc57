"""The plan of a fold: one entry for each convolution of the canonical graph and each module that stays for a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.fold.cost import effective_macs, effective_weights, graph_totals
from edgefold.export.fold.graph import RegionFold, RegionFolds, RegionLeft
from edgefold.export.fold.modules import ALREADY, NO_WORK, Decision
from edgefold.export.fold.regions import groups_of, op_name, path_of
from edgefold.export.fold.structure import read_structure
from edgefold.export.plan import FoldedLayer, FoldPlan, Totals
from edgefold.quantize.graph import constant_of, is_constant, module_path

_FEW: Final = 32  # convolutions inside a module that stays; more are shown as the module


def plan_of(module: GraphModule, decisions: list[Decision], regions: RegionFolds) -> FoldPlan:
    """The plan for the canonical ``module``, in the order of its graph."""
    convolutions = (node for node in module.graph.nodes if op_name(node) in ("conv1d", "conv2d", "convolution"))
    # A weight that is computed by the graph has no structure to show.
    nodes = [node for node in convolutions if is_constant(node.args[1])]
    left = {one.output: one for one in regions.left}
    origins = _Origins(decisions, regions.folds)
    staying = _staying(decisions, nodes, origins)
    layers: list[FoldedLayer] = []
    shown: set[str] = set()
    counted: dict[Node, FoldedLayer] = {}
    for node in sorted({*nodes, *left}):
        around = [name for name in staying if _is_inside(path_of(node), name)]
        for name in around:
            if name not in shown:
                shown.add(name)
                layers.append(_stays(staying[name]))
        if node in left:
            if not around:
                layers.append(_is_left(left[node]))
        elif not any(_hides(name, nodes) for name in around):
            counted[node] = _layer(module, node, origins, regions.reasons.get(node, ""))
            layers.append(counted[node])
    layers += [_stays(decision) for name, decision in staying.items() if name not in shown]
    return FoldPlan(tuple(layers), *_totals(module, counted))


def _totals(module: GraphModule, layers: dict[Node, FoldedLayer]) -> tuple[Totals, Totals]:
    """The whole network before and after, from its canonical graph and what became of its convolutions."""
    dense = graph_totals(module)
    nodes = macs_before = macs_after = parameters_before = parameters_after = 0
    seen = set()  # layers that are called twice have one weight
    for node, layer in layers.items():
        assert is_constant(node.args[1])
        weight = constant_of(module, node.args[1])
        macs = weight.numel() * math.prod(node.meta["val"].shape[2:])
        nodes += layer.ops_before - 1
        macs_before += layer.macs_before - macs
        macs_after += layer.macs - macs
        if node.args[1].target not in seen:
            seen.add(node.args[1].target)
            kept = weight.numel() + _biases(node, weight)
            parameters_before += layer.parameters_before - kept
            parameters_after += layer.parameters - kept
    before = dense.parameters + parameters_before
    after = dense.parameters + parameters_after
    return (
        Totals(dense.nodes + nodes, dense.flops + 2 * macs_before, before, 4 * before),
        Totals(dense.nodes, dense.flops + 2 * macs_after, after, 4 * after),
    )


def _biases(node: Node, weight: Tensor) -> int:
    return len(weight) if len(node.args) > 2 and node.args[2] is not None else 0


class _Origins:
    """Where the convolutions of the canonical graph come from."""

    def __init__(self, decisions: list[Decision], folds: list[RegionFold]) -> None:
        self._modules = {decision.name: decision for decision in decisions if decision.folded}
        self._regions = {fold.conv: fold for fold in folds}

    def region(self, node: Node) -> RegionFold | None:
        """The region that became the node."""
        return self._regions.get(node)

    def modules(self, node: Node) -> list[Decision]:
        """The folded modules that are in the node: it stands for one, or for a region around some."""
        region = self.region(node)
        return [self._modules[path] for path in (region.paths if region else (path_of(node),)) if path in self._modules]

    def paths(self) -> set[str]:
        """The paths of everything that was folded."""
        return {path for fold in self._regions.values() for path in (*fold.paths, path_of(fold.conv))} | self._modules.keys()


def _staying(decisions: list[Decision], nodes: list[Node], origins: _Origins) -> dict[str, Decision]:
    """The innermost modules that stay and hold convolutions of their own code or very many, with nothing folded inside."""
    paths, done = [path_of(node) for node in nodes], origins.paths()
    found = {}
    for decision in decisions:
        name = decision.name
        if decision.folded or decision.reason in ("", ALREADY, NO_WORK) or any(_is_inside(path, name) for path in done):
            continue
        if name in paths or decision.calls or sum(_is_inside(path, name) for path in paths) > _FEW:
            found[name] = decision
    return {name: one for name, one in found.items() if not any(other != name and _is_inside(other, name) for other in found)}


def _is_inside(path: str, name: str) -> bool:
    """Whether ``path`` is the module ``name`` or a part of it."""
    return not name or path == name or path.startswith(f"{name}.")


def _hides(name: str, nodes: list[Node]) -> bool:
    """Whether the module's convolutions are shown as the module and not one by one."""
    inside = [path_of(node) for node in nodes if _is_inside(path_of(node), name)]
    return name in inside or len(inside) > _FEW


@dataclass(frozen=True, slots=True)
class _Before:
    """What the original form of a layer had."""

    ops: int
    parameters: int
    macs: int


def _layer(module: GraphModule, node: Node, origins: _Origins, reason: str) -> FoldedLayer:
    assert is_constant(node.args[1])
    weight, groups = constant_of(module, node.args[1]), groups_of(node)
    kernel_map = read_structure(weight, groups)
    positions = math.prod(node.meta["val"].shape[2:])
    bias = _biases(node, weight)
    parameters, macs = effective_weights(kernel_map) + bias, effective_macs(kernel_map, positions)
    region, modules = origins.region(node), origins.modules(node)
    before = _before(region, modules)
    if before is None:
        before = _Before(1, weight.numel() + bias, weight.numel() * positions)
        why = f"{ALREADY}; around it: {reason}" if reason else ALREADY
        kind, geometry, error = op_name(node), _geometry(node, weight, groups), 0.0
    else:
        results = [one.folded for one in (region, *modules) if one and one.folded]
        why, kind = "", region.kind if region else modules[0].kind
        geometry, error = results[0].kernel.geometry, max(result.error for result in results)
    return FoldedLayer(
        name=module_path(node),
        kind=kind,
        folded=not why,
        reason=why,
        geometry=geometry,
        kernel_map=kernel_map,
        ops_before=before.ops,
        parameters_before=before.parameters,
        parameters=parameters,
        macs_before=before.macs,
        macs=macs,
        max_relative_error=error,
    )


def _before(region: RegionFold | None, modules: list[Decision]) -> _Before | None:
    """The original form: of the folded modules, and of the region around them without their folded layers."""
    total = _Before(region.ops_before, region.parameters_before, region.macs_before) if region else _Before(0, 0, 0)
    for decision in modules:
        assert decision.folded is not None
        call, weight = decision.calls[0], decision.folded.kernel.weight
        own = _Before(call.ops, decision.parameters_before, call.macs // call.shape[0])
        layer = _Before(1, weight.numel(), math.prod(call.out_shape[2:]) * weight.numel()) if region else _Before(0, 0, 0)
        total = _Before(
            total.ops + own.ops - layer.ops,
            max(0, total.parameters + own.parameters - layer.parameters),
            max(0, total.macs + own.macs - layer.macs),
        )
    return total if region or modules else None


def _stays(decision: Decision) -> FoldedLayer:
    first = decision.calls[:1]
    macs = sum(call.macs // call.shape[0] for call in first)
    return FoldedLayer(
        name=decision.name or decision.kind,
        kind=decision.kind,
        folded=False,
        reason=decision.reason,
        ops_before=sum(call.ops for call in first),
        parameters_before=decision.parameters_before,
        parameters=decision.parameters_before,
        macs_before=macs,
        macs=macs,
    )


def _is_left(region: RegionLeft) -> FoldedLayer:
    return FoldedLayer(
        name=module_path(region.output),
        kind=region.kind,
        folded=False,
        reason=region.reason,
        ops_before=region.ops,
        parameters_before=region.parameters,
        parameters=region.parameters,
        macs_before=region.macs,
        macs=region.macs,
    )


def _geometry(node: Node, weight: Tensor, groups: int) -> str:
    """As `edgefold.export.fold.kernel.Kernel.geometry`, for a node."""
    ndim = weight.ndim - 2

    def sizes(position: int, default: int) -> list[str]:
        value = node.args[position] if len(node.args) > position else default
        many = list(value) if isinstance(value, list | tuple) else [value]
        return [str(size) for size in (many * ndim if len(many) == 1 else many)]

    kernel = "x".join(map(str, weight.shape[2:]))
    padding = ",".join(size for size in sizes(4, 0) for _ in range(2))
    return (
        f"{weight.shape[1] * groups}->{weight.shape[0]} k{kernel} s{'x'.join(sizes(3, 1))} p{padding} "
        f"d{'x'.join(sizes(5, 1))} g{groups}"
    )
