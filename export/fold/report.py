"""The plan of a fold: one entry for each convolution of the canonical graph and each module that stays for a reason."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.fold.cost import effective_macs, effective_weights
from edgefold.export.fold.graph import RegionFold
from edgefold.export.fold.modules import Decision
from edgefold.export.fold.regions import op_name
from edgefold.export.fold.structure import read_structure
from edgefold.export.plan import FoldedLayer, FoldPlan
from edgefold.quantize.graph import constant_of, is_constant, module_path

_ALREADY = "is one convolution already"
_FEW = 32  # convolutions inside a module that stays; more are shown as the module


def plan_of(module: GraphModule, decisions: list[Decision], folds: list[RegionFold], reasons: dict[Node, str]) -> FoldPlan:
    """The plan for the canonical ``module``, in the order of its graph."""
    folded = {decision.name: decision for decision in decisions if decision.folded}
    by_node = {fold.conv: fold for fold in folds}
    convolutions = (node for node in module.graph.nodes if op_name(node) in ("conv1d", "conv2d", "convolution"))
    nodes = [node for node in convolutions if is_constant(node.args[1])]  # a weight that is computed has no structure to show
    kept = _kept(decisions, nodes, by_node, folded)
    layers: list[FoldedLayer] = []
    shown: set[str] = set()
    for node in nodes:
        path = _path(node)
        inside = [name for name in kept if path == name or path.startswith(f"{name}.") or name == ""]
        for name in inside:
            if name not in shown:
                shown.add(name)
                layers.append(_stays(kept[name]))
        if any(_hides(kept[name], nodes) for name in inside):
            continue
        layers.append(_layer(module, node, by_node.get(node), folded, reasons.get(node, "")))
    layers += [_stays(decision) for name, decision in kept.items() if name not in shown]
    return FoldPlan(tuple(layers))


def _kept(
    decisions: list[Decision], nodes: list[Node], by_node: dict[Node, RegionFold], folded: dict[str, Decision]
) -> dict[str, Decision]:
    """The modules that stay and are worth a line: those with convolutions of their own code, and nothing folded inside."""
    paths = {_path(node) for node in nodes}
    done = {path for fold in by_node.values() for path in (*fold.paths, _path(fold.conv))} | folded.keys()
    found = {}
    for decision in decisions:
        name = decision.name
        own = name in paths
        many = sum(path.startswith(f"{name}." if name else "") for path in paths) > _FEW
        busy = any(path == name or path.startswith(f"{name}." if name else "") for path in done)
        if (
            decision.folded is None
            and decision.reason not in ("", _ALREADY, "holds no convolution")
            and not busy
            and (own or many or decision.calls)
        ):
            found[name] = decision
    below = {name for name in found for other in found if name != other and other.startswith(f"{name}." if name else "")}
    return {name: decision for name, decision in found.items() if name not in below}


def _hides(decision: Decision, nodes: list[Node]) -> bool:
    """Whether the module's convolutions are shown as the module and not one by one."""
    name = decision.name
    count = sum(_path(node).startswith(f"{name}." if name else "") for node in nodes)
    return count > _FEW or any(_path(node) == name for node in nodes)


def _path(node: Node) -> str:
    """The path of the module that a node comes from; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _layer(module: GraphModule, node: Node, fold: RegionFold | None, folded: dict[str, Decision], reason: str) -> FoldedLayer:
    name = module_path(node)
    weight = constant_of(module, node.args[1])
    assert isinstance(weight, Tensor)
    groups = int(_argument(node, 6, 1)) if op_name(node) != "convolution" else int(node.args[8])  # type: ignore[arg-type]  # fx stores plain ints
    kernel_map = read_structure(weight, groups)
    positions = math.prod(node.meta["val"].shape[2:])
    bias = 0 if node.args[2:3] in ((), (None,)) else weight.shape[0]
    macs, parameters = effective_macs(kernel_map, positions), effective_weights(kernel_map) + bias
    origin = [folded[path] for path in (fold.paths if fold else (_path(node),)) if path in folded]
    if fold is None and not origin:
        return FoldedLayer(
            name, op_name(node), False, f"{_ALREADY}; around it: {reason}" if reason else _ALREADY, _geometry(node, weight, groups), kernel_map, 1,
            weight.numel() + bias, parameters, weight[0].numel() * weight.shape[0] * positions, macs,
        )  # fmt: skip
    error = max([decision.folded.error for decision in origin if decision.folded] + ([fold.folded.error] if fold else []))
    source = fold.folded if fold else origin[0].folded
    assert source is not None
    return FoldedLayer(
        name=name,
        kind=fold.kind if fold else origin[0].kind,
        folded=True,
        reason="",
        geometry=source.kernel.geometry,
        kernel_map=kernel_map,
        ops_before=_before(origin, fold, "ops"),
        parameters_before=_before(origin, fold, "parameters"),
        parameters=parameters,
        macs_before=_before(origin, fold, "macs"),
        macs=macs,
        max_relative_error=error,
    )


def _before(origin: Iterable[Decision], fold: RegionFold | None, what: str) -> int:
    """What the original form had: of the folded modules, and of the region around them without their folded layers."""
    total = 0 if fold is None else {"ops": fold.ops_before, "parameters": fold.parameters_before, "macs": fold.macs_before}[what]
    for decision in origin:
        assert decision.folded is not None
        kernel, call = decision.folded.kernel, decision.calls[0]
        before = {"ops": call.ops, "parameters": decision.parameters_before, "macs": call.macs // call.shape[0]}[what]
        dense = math.prod(call.out_shape[2:]) * kernel.weight.numel()
        layer = {"ops": 1, "parameters": kernel.weight.numel() + kernel.bias.numel(), "macs": dense}[what]
        total += before if fold is None else before - layer
    return total


def _stays(decision: Decision) -> FoldedLayer:
    macs = sum(call.macs // call.shape[0] for call in decision.calls[:1])
    ops = sum(call.ops for call in decision.calls[:1])
    return FoldedLayer(
        decision.name or decision.kind, decision.kind, False, decision.reason, ops_before=ops,
        parameters_before=decision.parameters_before, parameters=decision.parameters_before, macs_before=macs, macs=macs,
    )  # fmt: skip


def _argument(node: Node, position: int, default: int) -> object:
    return node.args[position] if len(node.args) > position else default


def _geometry(node: Node, weight: Tensor, groups: int) -> str:
    kernel = "x".join(map(str, weight.shape[2:]))
    return f"{weight.shape[1] * groups}->{weight.shape[0]} k{kernel} g{groups}"
