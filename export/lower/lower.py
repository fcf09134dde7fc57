"""Lowering: from the canonical network to the one that a runtime computes fastest.

Three steps, on a copy of the graph: choose a form for each convolution (`select`), permute weights so that its
channel groups are contiguous (`permute`), and write the chosen forms (`rewrite`). The weights stay float;
quantization parameters travel with the nodes, so nothing is calibrated again.

A group convolution holds its channels together, and what shuffles them before the next one is a gather. Where gathers are left,
the choice is made a second time with all group convolutions as dense ones, which take any order, and as groups again where
that is worth its gather; the cheaper of both is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from edgefold.artifact import Format, Precision
from edgefold.errors import unknown_name
from edgefold.export.constants import fold_constants
from edgefold.export.lower import multiplied
from edgefold.export.lower.candidates import options_of
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.costs import CostModel
from edgefold.export.lower.estimate import gather_ns
from edgefold.export.lower.nodes import record_values, shape_of
from edgefold.export.lower.permute import Orders
from edgefold.export.lower.rewrite import Rewriter, free_groups
from edgefold.export.lower.rows import by_rows, in_plan
from edgefold.export.lower.select import Choice, Pricing, choose
from edgefold.export.lower.tables.cache import HOST, cached_table, shipped_for
from edgefold.export.passes.infra import clone
from edgefold.export.plan import Lowering, LoweringPlan
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.graph import constant_of, module_path
from edgefold.quantize.scheme import WEIGHT_SCALE


def lower(
    program: Program,
    *,
    format: Format,
    precision: Precision,
    lowering: Lowering | str | Mapping[str, Lowering] = "auto",
    device: str = "host",
    costs: CostModel | None = None,
    budget_bytes: int | None = None,
    whole: bool = False,
) -> LoweredProgram:
    """The program with the form of each layer chosen for one format, precision and device. ``program`` is not changed.

    Args:
        program: canonical network, float weights; quantization parameters in its nodes' ``meta`` are carried along.
        format: what it will be emitted as.
        precision: the numbers it will be emitted with.
        lowering: one form for all layers (the nearest where a layer lacks it), or "auto": the cheapest by cost; or the form of
            each layer by its module path.
        device: where it will run; for the plan.
        costs: times of layers on that device. Without them, or where they do not know a layer, what was measured on the device
            before (`edgefold.device_bench.costs`) is asked, then the shipped table of this class of CPU (if the device is the
            host; times of another version of the runtime are marked as estimates), then the cost is estimated.
        budget_bytes: with "auto", what the weights of the convolutions may have together, as far as smaller forms allow it.
        whole: no convolution is computed in parts for a runtime's kernels (`edgefold.export.lower.rows`), so that formats agree.

    Raises:
        UsageError: ``lowering`` is unknown.
    """
    named = lowering if isinstance(lowering, Mapping) else None
    wanted = _lowering(lowering) if not isinstance(lowering, Mapping) else None
    tables = (costs, cached_table(device), shipped_for(format) if device == HOST else None)
    models: Sequence[CostModel] = [model for model in tables if model is not None]

    def write(dense: Callable[[str], bool]) -> _Written:
        return _write(program, format, precision, models, named, wanted, budget_bytes, dense)

    def asked_for_dense(name: str) -> bool:
        return (wanted if named is None else named.get(name)) is Lowering.DENSE

    written = write(asked_for_dense)
    if wanted is None and named is None and written.gathers:
        free = write(lambda _: True)
        written = min(written, free, key=lambda one: one.cost_ns)
    graph, choices = written.graph, written.choices
    parts = {} if whole else by_rows(graph, format, precision)
    entries = tuple(
        in_plan(choice.layer, parts[choice.options.conv.node]) if choice.options.conv.node in parts else choice.layer
        for choice in choices
    )
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    gathers = written.gathers
    result = GraphModule(graph, graph.graph)  # without the attributes that no node reads any more
    asked = "by layer" if named is not None else str(lowering)
    plan = LoweringPlan(format, precision, device, entries, gathers, lowering=asked, whole=whole)
    lowered = Program(result, program.example_inputs, program.input_names, program.output_names)
    return LoweredProgram(lowered, format, precision, plan)


@dataclass(frozen=True, slots=True)
class _Written:
    """A graph with the chosen forms, the gathers that it needs, and the estimated time of both."""

    graph: GraphModule
    choices: Sequence[Choice]
    gathers: int
    cost_ns: float


def _write(
    program: Program,
    format: Format,
    precision: Precision,
    models: Sequence[CostModel],
    named: Mapping[str, Lowering] | None,
    wanted: Lowering | None,
    budget_bytes: int | None,
    dense: Callable[[str], bool],
) -> _Written:
    """Chooses the forms of all layers and writes them. Group convolutions at whose module paths ``dense`` holds are as free in
    the order of their channels as the dense ones that they can be."""
    graph = clone(program.graph)
    record_values(graph, program.example_inputs)
    fold_constants(graph, made=True)
    apart = multiplied.split_multiplied(graph)
    if free_groups(graph, dense) or apart:
        record_values(graph, program.example_inputs)
    orders = Orders(graph)
    convs = [conv for conv in map(Conv.of, graph.graph.nodes) if conv is not None]
    found = [apart.get(conv.node) or options_of(conv, constant_of(graph, conv.weight)) for conv in convs]
    layers = list(dict.fromkeys(found))
    pricing = Pricing(format, precision, models, _floats([layer.conv for layer in layers]))
    if named is None:
        choices = choose(layers, orders, pricing, wanted, budget_bytes)
    else:
        choices = [
            choice
            for layer in layers
            for choice in choose([layer], orders, pricing, named.get(module_path(layer.conv.node), Lowering.KEEP))
        ]
    cost_ns = sum(choice.layer.chosen.cost_ns for choice in choices)
    gathers = orders.apply()
    counts = Counter(apart.values())
    choices = [
        replace(choice, layer=multiplied.in_plan(choice.layer, counts[choice.options])) if choice.options in counts else choice
        for choice in choices
    ]
    for choice in choices:
        if choice.options in counts:
            continue
        conv = choice.options.conv.current()
        if choice.option.changes(conv):
            rewriter = Rewriter(graph, conv, choice.option, orders.read_order(conv.node), orders.write_order(conv.node))
            gathers += rewriter.run()
    if choices:
        rule, _ = pricing.rule(choices[0].options)
        moves = [node for node in graph.graph.nodes if node.target is torch.ops.aten.index_select.default]
        cost_ns += sum(gather_ns(rule, math.prod(shape_of(node) or ())) for node in moves)
    return _Written(graph, choices, gathers, cost_ns)


def _floats(convs: Sequence[Conv]) -> frozenset[Node]:
    """The convolutions without weight scales in a network where others have them."""
    quantized = {conv.node for conv in convs if WEIGHT_SCALE in conv.node.meta}
    return frozenset(conv.node for conv in convs if conv.node not in quantized) if quantized else frozenset()


def _lowering(name: Lowering | str) -> Lowering | None:
    if name == "auto":
        return None
    try:
        return Lowering(name)
    except ValueError:
        raise unknown_name("lowering", str(name), [*Lowering, "auto"]) from None
