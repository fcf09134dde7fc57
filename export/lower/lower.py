"""Lowering: from the canonical network to the one that a runtime computes fastest.

Three steps, on a copy of the graph: choose a form for each convolution (`select`), permute weights so that its
channel groups are contiguous (`permute`), and write the chosen forms (`rewrite`). The weights stay float;
quantization parameters travel with the nodes, so nothing is calibrated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import GraphModule, Node

from edgefold.artifact import Format, Precision
from edgefold.errors import unknown_name
from edgefold.export.constants import fold_constants
from edgefold.export.lower.candidates import options_of
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.costs import CostModel
from edgefold.export.lower.nodes import record_values
from edgefold.export.lower.permute import Orders
from edgefold.export.lower.rewrite import Rewriter
from edgefold.export.lower.rows import by_rows, in_plan
from edgefold.export.lower.select import Pricing, choose
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
    graph = clone(program.graph)
    record_values(graph, program.example_inputs)
    fold_constants(graph, made=True)
    orders = Orders(graph)
    tables = (costs, cached_table(device), shipped_for(format) if device == HOST else None)
    models: Sequence[CostModel] = [model for model in tables if model is not None]
    convs = [conv for conv in map(Conv.of, graph.graph.nodes) if conv is not None]
    layers = [options_of(conv, constant_of(graph, conv.weight)) for conv in convs]
    pricing = Pricing(format, precision, models, _floats(convs))
    if named is None:
        choices = choose(layers, orders, pricing, wanted, budget_bytes)
    else:
        choices = [
            choice
            for layer in layers
            for choice in choose([layer], orders, pricing, named.get(module_path(layer.conv.node), Lowering.KEEP))
        ]
    gathers = orders.apply()
    for choice in choices:
        conv = choice.options.conv.current()
        if choice.option.changes(conv):
            rewriter = Rewriter(graph, conv, choice.option, orders.read_order(conv.node), orders.write_order(conv.node))
            gathers += rewriter.run()
    parts = {} if whole else by_rows(graph, format, precision)
    entries = tuple(
        in_plan(choice.layer, parts[choice.options.conv.node]) if choice.options.conv.node in parts else choice.layer
        for choice in choices
    )
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    result = GraphModule(graph, graph.graph)  # without the attributes that no node reads any more
    asked = "by layer" if named is not None else str(lowering)
    plan = LoweringPlan(format, precision, device, entries, gathers, lowering=asked, whole=whole)
    lowered = Program(result, program.example_inputs, program.input_names, program.output_names)
    return LoweredProgram(lowered, format, precision, plan)


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
