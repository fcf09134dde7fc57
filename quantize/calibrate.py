"""One calibration of the canonical network, and the one table of scales that all formats use.

The activations' ranges come from PT2E: `prepare_pt2e` with the annotation of `edgefold.quantize.annotate` and observers of
ours. Weights are symmetric per output channel. The branches into which a layer may be lowered are no values of the canonical
graph, so they are computed beside it, from the same inputs and in the same pass.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgefold.errors import DataError
from edgefold.quantize.annotate import Annotation, EdgefoldQuantizer, annotate
from edgefold.quantize.graph import add_buffer, constant_of, groups_of, is_constant, output_nodes
from edgefold.quantize.insert import weight_values
from edgefold.quantize.observers import OBSERVERS, HistogramObserver, Rule, get_observer, qparams_of_range
from edgefold.quantize.paired import correct_bias, has_bias, walk
from edgefold.quantize.pairs import full_scale, layers_of_full_range, weight_scale
from edgefold.quantize.pt2e import prepare_pt2e
from edgefold.quantize.scheme import (
    BRANCH_Q,
    CORRECTED_BIAS,
    DYNAMIC,
    EXPONENT_BITS,
    INT8,
    ROUNDED_WEIGHT,
    WEIGHT_SCALE,
    Grid,
    Q,
    QParams,
)
from edgefold.quantize.summands import coarsened

# The branches that a conv of a weight (N, M/G, *kernel) and so many groups may be lowered to, by name: a bool mask of the
# weight's taps that are in it, and whether the bias is. Injected by the caller, who knows the structure of folded layers.
Branches = Callable[[Tensor, int], Mapping[str, tuple[Tensor, bool]]]

# Integer biases are int32 with scale input_scale * weight_scale; a quarter of the range is left for the accumulator.
_BIAS_LIMIT: Final = 2**29
_JUDGES: Final = 16  # batches on which observers are compared


@dataclass(frozen=True, slots=True)
class ScaleTable:
    """The quantization parameters of a network, by node name of its canonical graph."""

    activations: dict[str, QParams]
    weights: dict[str, Tensor]  # float32 (N,), one scale an output channel
    branches: dict[str, dict[str, QParams]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)  # corrected biases (N,), where they differ from the graph's
    clipped: dict[str, float] = field(default_factory=dict)  # share of the values outside the range
    observer: str = "minmax"
    samples: int = 0
    full_range: frozenset[str] = frozenset()  # layers whose weights are not made pair-safe
    dynamic: bool = False  # inputs of the weights are quantized at run time
    exponent_bits: int = 0  # of weights that are powers of two; 0: they are int8
    rounded: dict[str, Tensor] = field(default_factory=dict)  # int8 weights (N, ...), where they are not the nearest integers


@dataclass(frozen=True, slots=True)
class Statistics:
    """What calibration saw. ``activations`` has one observer a group, by the name of the group's first node."""

    annotation: Annotation
    activations: dict[str, HistogramObserver]
    branches: dict[str, dict[str, HistogramObserver]]
    samples: int
    grid: Grid = INT8


def calibrate(
    graph: GraphModule,
    batches: Sequence[tuple[Tensor, ...]],
    *,
    observer: str = "auto",
    branches: Branches | None = None,
    keep_float: frozenset[str] = frozenset(),
    full_range: frozenset[str] | None = None,
    grid: Grid = INT8,
    progress: Callable[[], None] = lambda: None,
) -> ScaleTable:
    """Runs the graph over the batches once and makes the table of scales.

    Args:
        graph: canonical ATen graph, float32; not changed.
        batches: inputs of the graph, each of the shape that it was captured for.
        observer: how a range is chosen, see `edgefold.quantize.observers`; ``auto`` tries all of them and takes the one whose
            quantized network has the best SQNR on some of the batches.
        branches: of a conv, see `Branches`.
        keep_float: convs and linears that are not quantized, by node name.
        full_range: layers whose weights keep their full range, see `edgefold.quantize.pairs`; by default those that need it,
            and all where activations have more than 8 bits.
        grid: the integers of activations.
        progress: called after each batch.

    Raises:
        DataError: there is no batch, or one holds NaN or infinite values.
        UsageError: there is no such observer.
    """
    names = list(OBSERVERS) if observer == "auto" else [observer]
    rules = {name: get_observer(name) for name in names}
    statistics = collect(graph, batches, branches=branches, keep_float=keep_float, grid=grid, progress=progress)
    tables = [make_table(graph, statistics, name, rule) for name, rule in rules.items()]
    judges = batches[:: max(1, len(batches) // _JUDGES)][:_JUDGES]
    table = tables[0]
    if len(tables) > 1:
        table = max(tables, key=lambda table: output_sqnr_db(annotated(graph, table), judges, corrected=True))
    if grid is not INT8:  # what saturates is a product of 8-bit integers
        full_range = frozenset(statistics.annotation.weighted)
    return with_pair_safe_weights(graph, statistics.annotation, table, judges, full_range)


def with_pair_safe_weights(
    graph: GraphModule,
    annotation: Annotation,
    table: ScaleTable,
    judges: Sequence[tuple[Tensor, ...]],
    full_range: frozenset[str] | None = None,
) -> ScaleTable:
    """The table with pair-safe weights in all layers but ``full_range``, by default in those where the network can afford it."""
    safe = _weight_scales(graph, annotation, table.activations, weight_scale)
    nodes = {node.name: node for node in graph.graph.nodes}
    losses = {}
    for name, scale in safe.items():
        # Rounding to steps of s makes noise of s^2 / 12.
        added = (scale.double().square() - table.weights[name].double().square()).mean() / 12
        power = constant_of(graph, nodes[name].args[1]).double().square().mean()
        losses[name] = float(added / power.clamp_min(1e-30))

    def changed(full: frozenset[str]) -> ScaleTable:
        weights = {name: table.weights[name] if name in full else scale for name, scale in safe.items()}
        return replace(table, weights=weights, full_range=full)

    def sqnr_db(table: ScaleTable) -> float:
        return output_sqnr_db(annotated(graph, table), judges, corrected=True)

    if full_range is not None:
        return changed(full_range)
    return changed(layers_of_full_range(losses, lambda full: sqnr_db(changed(full))))


def collect(
    graph: GraphModule,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    branches: Branches | None = None,
    keep_float: frozenset[str] = frozenset(),
    grid: Grid = INT8,
    progress: Callable[[], None] = lambda: None,
) -> Statistics:
    """Runs the graph over the batches and keeps a histogram of each quantized value; see `calibrate`."""
    annotation = annotate(graph, keep_float, grid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes inside torchao
        prepared = prepare_pt2e(copy.deepcopy(graph), EdgefoldQuantizer(annotation, HistogramObserver))
    runner = _BranchRunner(prepared, branches, frozenset(annotation.weighted))
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
    return Statistics(annotation, _observers_by_node(prepared), runner.branches, samples, grid)


def make_table(graph: GraphModule, statistics: Statistics, name: str, rule: Rule) -> ScaleTable:
    """The table of scales that the observer ``name``, with the given rule, makes of one calibration."""
    grid = statistics.grid
    activations: dict[str, QParams] = {}
    for first, *others in statistics.annotation.groups:
        seen = statistics.activations.get(first)
        params = statistics.annotation.fixed.get(first)
        if params is None:
            assert seen is not None
            # What a gate saturates is lost by a share, and has no outliers; hard-swish as a table has no gate that could.
            ends = (seen.low, seen.high) if first in statistics.annotation.gates else rule(seen, grid)
            params = qparams_of_range(*ends, grid)
        activations.update(dict.fromkeys((first, *others), params))
    if grid is INT8:
        activations = coarsened(graph, statistics.annotation, activations)
    clipped = {first: seen.clipped_share(activations[first]) for first, seen in statistics.activations.items()}
    nodes = {node.name: node for node in graph.graph.nodes}
    activations.update(
        {name: qparams_of_number(constant_of(graph, nodes[name]), grid) for name in statistics.annotation.constants}
    )
    branches = {
        layer: {branch: qparams_of_range(*rule(seen, grid), grid) for branch, seen in pair.items()}
        for layer, pair in statistics.branches.items()
    }
    weights = _weight_scales(graph, statistics.annotation, activations, full_scale)
    return ScaleTable(activations, weights, branches, {}, clipped, name, statistics.samples)


def output_sqnr_db(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]], *, corrected: bool = False) -> float:
    """10 log10(sum y^2 / sum (y - q)^2) over all outputs, of the float outputs y and the quantized outputs q.

    Args:
        graph: with its float parameters, as `annotated` makes it.
        samples: inputs of the graph.
        corrected: whether each layer's mean error over these samples is taken away, as corrected biases would: scales are
            compared by what is left then.
    """
    signal, noise = output_powers(graph, samples, corrected=corrected).sum(dim=1)
    return float(10 * torch.log10(signal / noise.clamp_min(1e-30)))


def output_powers(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]], *, corrected: bool = False) -> Tensor:
    """sum y^2 and sum (y - q)^2 of each sample, float64 (2, samples); see `output_sqnr_db`."""
    outputs = set(output_nodes(graph))
    power = torch.zeros(2, len(samples), dtype=torch.float64)

    def add(node: Node, exact: list[Tensor], quantized: list[Tensor]) -> None:
        if node in outputs:
            for index, (y, q) in enumerate(zip(exact, quantized, strict=True)):
                power[0, index] += y.double().square().sum()
                power[1, index] += (y.double() - q.double()).square().sum()

    def correct(node: Node, exact: list[Tensor], quantized: list[Tensor]) -> None:
        if corrected and has_bias(node):
            correct_bias(graph, node, exact, quantized)

    walk(graph, samples, before=correct, after=add)
    return power


def annotated(graph: GraphModule, table: ScaleTable) -> GraphModule:
    """A copy of the canonical graph whose nodes carry the table in their ``meta``; it still computes what ``graph`` does."""
    result = copy.deepcopy(graph)
    carried: tuple[tuple[str, Mapping[str, Any]], ...] = (
        (Q, table.activations),
        (WEIGHT_SCALE, table.weights),
        (BRANCH_Q, table.branches),
        (ROUNDED_WEIGHT, table.rounded),
        (CORRECTED_BIAS, table.biases),
    )
    for node in result.graph.nodes:
        for key, values in carried:
            if node.name in values:
                node.meta[key] = values[node.name]
        if table.dynamic and node.name in table.weights:
            node.meta[DYNAMIC] = True
        if table.exponent_bits and node.name in table.weights:
            node.meta[EXPONENT_BITS] = table.exponent_bits
    return result


def attach(graph: GraphModule, table: ScaleTable) -> GraphModule:
    """As `annotated`, with the table's weights and biases in the place of the float ones: what is lowered and written."""
    result = annotated(graph, table)
    for node in list(result.graph.nodes):
        integers, bias = node.meta.pop(ROUNDED_WEIGHT, None), node.meta.pop(CORRECTED_BIAS, None)
        if integers is not None:
            scale = node.meta[WEIGHT_SCALE]
            weight = constant_of(result, node.args[1])
            # A layer is lowered by its zeros: a weight that only rounds to zero is none of them.
            small = weight.sign() * weight_values(torch.ones_like(integers), scale) / 4
            values = torch.where((integers == 0) & (weight != 0), small, weight_values(integers, scale))
            _set_parameter(result, node, 1, values)
        if bias is not None:
            _set_parameter(result, node, 2, bias)
    result.recompile()
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
        biases={name: bias for name, bias in table.biases.items() if name not in names},
        rounded={name: weight for name, weight in table.rounded.items() if name not in names},
    )


def qparams_of_number(value: Tensor, grid: Grid = INT8) -> QParams:
    """Parameters that hold one number exactly, as an integer far from the ends of the range: a step of 1/64 of it."""
    number = abs(float(value))
    return QParams(number / 64 if number > 0 else 1.0, 0, grid.qmin, grid.qmax)


def _set_parameter(module: GraphModule, node: Node, position: int, value: Tensor) -> None:
    with module.graph.inserting_before(node):
        constant = add_buffer(module, f"{node.name}_quantized_{'bias' if position == 2 else 'weight'}", value)
    replaced = node.args[position]
    node.args = (*node.args[:position], constant, *node.args[position + 1 :])
    if isinstance(replaced, Node) and not replaced.users:
        module.graph.erase_node(replaced)


def _observers_by_node(prepared: GraphModule) -> dict[str, HistogramObserver]:
    """The observer of each observed node, by the node's name in the canonical graph."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    found: dict[str, HistogramObserver] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], HistogramObserver):
            source = node.args[0]
            assert isinstance(source, Node)
            found[source.name] = modules[str(node.target)]
    return found


class _BranchRunner(Interpreter):
    """Runs a prepared graph and observes, beside it, the branches of each conv that has them."""

    def __init__(self, prepared: GraphModule, branches: Branches | None, weighted: frozenset[str]) -> None:
        super().__init__(prepared)
        self.branches: dict[str, dict[str, HistogramObserver]] = {}
        self._weights: dict[str, dict[str, tuple[Tensor, bool]]] = {}
        for node in prepared.graph.nodes:
            if branches is None or node.name not in weighted or node.target is torch.ops.aten.linear.default:
                continue
            weight = constant_of(prepared, node.args[1])
            found = branches(weight, groups_of(node))
            if found:
                self._weights[node.name] = {name: (weight * taps, biased) for name, (taps, biased) in found.items()}
                self.branches[node.name] = {name: HistogramObserver() for name in found}

    def run_node(self, n: Node) -> Any:
        """Runs one node; a conv with branches also feeds their observers."""
        if n.name in self._weights:
            args, _ = self.fetch_args_kwargs_from_env(n)
            source, _, bias, *rest = (*args, None)[: max(3, len(args))]
            for branch, (weight, biased) in self._weights[n.name].items():
                value = n.target(source, weight, bias if biased else None, *rest)  # type: ignore[operator]
                self.branches[n.name][branch](value)
        return super().run_node(n)


def _weight_scales(
    graph: GraphModule, annotation: Annotation, activations: dict[str, QParams], rule: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    nodes = {node.name: node for node in graph.graph.nodes}
    scales: dict[str, Tensor] = {}
    for name in annotation.weighted:
        node = nodes[name]
        weight = constant_of(graph, node.args[1]).float()
        scale = rule(weight)
        bias = node.args[2] if len(node.args) > 2 else None
        input_scale = activations[node.args[0].name].scale
        if is_constant(bias):
            # A channel of tiny weights with a large bias (a dead channel) would overflow the int32 bias.
            scale = torch.maximum(scale, constant_of(graph, bias).float().abs() / (input_scale * _BIAS_LIMIT))
        made = next((activations[one.name] for one in (node, *node.users) if one.name in activations), None)
        # With it a product of integers is a step of the output: kernels take no ratio that is far from one.
        step = made.scale / input_scale if made is not None else 1.0
        scales[name] = torch.where(scale > 0, scale, torch.full_like(scale, _smallest(scale, step)))
    return scales


def _smallest(scale: Tensor, otherwise: float) -> float:
    """A scale for channels without any weight: that of the smallest channel, or ``otherwise`` where no channel has a weight."""
    positive = scale[scale > 0]
    value = float(positive.min()) if positive.numel() else otherwise
    return value if math.isfinite(value) else otherwise
