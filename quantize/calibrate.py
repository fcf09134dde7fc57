"""One calibration of the canonical network, and the one table of scales that all formats use.

The activations' ranges come from PT2E: `prepare_pt2e` with the annotation of `edgefold.quantize.annotate` and observers of
ours. Weights are symmetric per output channel. The branches into which a layer may be lowered are no values of the canonical
graph, so they are computed beside it, from the same inputs and in the same pass.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgefold.errors import DataError
from edgefold.quantize.annotate import Annotation, EdgefoldQuantizer, annotate
from edgefold.quantize.graph import constant_of, is_constant
from edgefold.quantize.observers import Observer, get_observer
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE, Q, QParams

# Which taps of a conv weight (N, M/G, *kernel) belong to the group branch when the layer is lowered to two branches;
# ``None`` where it never is. Injected by the caller, who knows the structure of folded layers.
BranchMask = Callable[[Tensor, int], Tensor | None]

# Integer biases are int32 with scale input_scale * weight_scale; a quarter of the range is left for the accumulator.
_BIAS_LIMIT: Final = 2**29


@dataclass(frozen=True, slots=True)
class ScaleTable:
    """The quantization parameters of a network, by node name of its canonical graph."""

    activations: dict[str, QParams]
    weights: dict[str, Tensor]  # float32 (N,), one scale an output channel
    branches: dict[str, dict[str, QParams]] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)  # share of the values outside the range
    samples: int = 0


def calibrate(
    graph: GraphModule,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    observer: str = "minmax",
    branch_mask: BranchMask | None = None,
    keep_float: frozenset[str] = frozenset(),
    progress: Callable[[], None] = lambda: None,
) -> ScaleTable:
    """Runs the graph over the batches and makes the table of scales.

    Args:
        graph: canonical ATen graph, float32; not changed.
        batches: inputs of the graph, each of the shape that it was captured for.
        observer: how a range is chosen, see `edgefold.quantize.observers`.
        branch_mask: the group branch of a conv, see `BranchMask`.
        keep_float: convs and linears that are not quantized, by node name.
        progress: called after each batch.

    Raises:
        DataError: there is no batch, or one holds NaN or infinite values.
    """
    annotation = annotate(graph, keep_float)
    make = get_observer(observer)
    prepared = _prepare(graph, annotation, make)
    observers = _observers_by_node(prepared)
    runner = _BranchRunner(prepared, make, branch_mask, frozenset(annotation.weighted))
    samples = 0
    with torch.no_grad():
        for batch in batches:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in batch):
                raise DataError(f"calibration sample {samples} holds NaN or infinite values; remove it or fix the preprocessing")
            runner.run(*batch)
            samples += 1
            progress()
    if not samples:
        raise DataError("calibration data is empty, expected at least one batch; give some inputs as the model sees them in use")
    activations: dict[str, QParams] = {}
    clipped: dict[str, float] = {}
    for first, *others in annotation.groups:
        params = annotation.fixed.get(first) or observers[first].qparams()
        activations.update(dict.fromkeys((first, *others), params))
        if first in observers:
            clipped[first] = observers[first].clipped_share(params)
    branches = {name: {branch: seen.qparams() for branch, seen in pair.items()} for name, pair in runner.branches.items()}
    weights = _weight_scales(graph, annotation, activations)
    return ScaleTable(activations, weights, branches, clipped, samples)


def attach(graph: GraphModule, table: ScaleTable) -> GraphModule:
    """A copy of the canonical graph whose nodes carry the table's parameters in their ``meta``."""
    result = copy.deepcopy(graph)
    for node in result.graph.nodes:
        for key, values in ((Q, table.activations), (WEIGHT_SCALE, table.weights), (BRANCH_Q, table.branches)):
            if node.name in values:
                node.meta[key] = values[node.name]
    return result


def without(table: ScaleTable, graph: GraphModule, names: frozenset[str]) -> ScaleTable:
    """The table with the convs and linears ``names`` left float: the rest keeps its scales, nothing is calibrated anew."""
    annotation = annotate(graph, names)
    kept = {name for group in annotation.groups for name in group}
    return replace(
        table,
        activations={name: params for name, params in table.activations.items() if name in kept},
        weights={name: scale for name, scale in table.weights.items() if name not in names},
        branches={name: pair for name, pair in table.branches.items() if name not in names},
    )


def _prepare(graph: GraphModule, annotation: Annotation, make: Callable[..., Observer]) -> GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes inside torchao
        prepared = prepare_pt2e(copy.deepcopy(graph), EdgefoldQuantizer(annotation, make))
    assert isinstance(prepared, GraphModule)
    return prepared


def _observers_by_node(prepared: GraphModule) -> dict[str, Observer]:
    """The observer of each observed node, by the node's name in the canonical graph."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    found: dict[str, Observer] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], Observer):
            source = node.args[0]
            assert isinstance(source, Node)
            found[source.name] = modules[str(node.target)]
    return found


class _BranchRunner(Interpreter):
    """Runs a prepared graph and observes, beside it, the two branches of each conv that has them."""

    def __init__(
        self, prepared: GraphModule, make: Callable[..., Observer], branch_mask: BranchMask | None, weighted: frozenset[str]
    ) -> None:
        super().__init__(prepared)
        self.branches: dict[str, dict[str, Observer]] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}
        for node in prepared.graph.nodes:
            if branch_mask is None or node.name not in weighted or node.target is torch.ops.aten.linear.default:
                continue
            weight = constant_of(prepared, node.args[1])
            mask = branch_mask(weight, int(node.args[6]) if len(node.args) > 6 else 1)
            if mask is not None:
                self._weights[node.name] = {"group": weight * mask, "point": weight * ~mask}
                self.branches[node.name] = {"group": make(), "point": make()}

    def run_node(self, n: Node) -> Any:
        """Runs one node; a conv with branches also feeds their observers."""
        if n.name in self._weights:
            args, _ = self.fetch_args_kwargs_from_env(n)
            source, _, bias, *rest = (*args, None)[: max(3, len(args))]
            for branch, weight in self._weights[n.name].items():
                # The bias goes with the group branch.
                value = n.target(source, weight, bias if branch == "group" else None, *rest)  # type: ignore[operator]
                self.branches[n.name][branch](value)
        return super().run_node(n)


def _weight_scales(graph: GraphModule, annotation: Annotation, activations: dict[str, QParams]) -> dict[str, Tensor]:
    nodes = {node.name: node for node in graph.graph.nodes}
    scales: dict[str, Tensor] = {}
    for name in annotation.weighted:
        node = nodes[name]
        weight = constant_of(graph, node.args[1]).float()
        scale = weight.flatten(1).abs().amax(dim=1) / 127
        bias = node.args[2] if len(node.args) > 2 else None
        if is_constant(bias):
            # A channel of tiny weights with a large bias (a dead channel) would overflow the int32 bias.
            input_scale = activations[node.args[0].name].scale
            scale = torch.maximum(scale, constant_of(graph, bias).float().abs() / (input_scale * _BIAS_LIMIT))
        scales[name] = torch.where(scale > 0, scale, torch.full_like(scale, _smallest(scale)))
    return scales


def _smallest(scale: Tensor) -> float:
    """A scale for channels without any weight: that of the smallest channel, or one."""
    positive = scale[scale > 0]
    value = float(positive.min()) if positive.numel() else 1.0
    return value if math.isfinite(value) else 1.0
