"""What `edgefold fold` shows: a table of layers, one of the ways to compute them, and one of the whole network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgefold.export.plan import Lowering

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.export.plan import Candidate, FoldedLayer, FoldPlan, LoweredLayer, LoweringPlan, Totals


def fold_table(plan: FoldPlan) -> Iterable[RenderableType]:
    """What became of each layer; those that stay have the reason."""
    from edgefold.cli.output import table
    from edgefold.report.plan_pictures import count

    def kernels(layer: FoldedLayer) -> str:
        found = layer.kernel_map
        return "" if found is None else f"{count(found.full)} / {count(found.centre)} / {count(found.zero)}"

    yield table(
        ("layer", "kind", "geometry", "whole / 1×1 / zero", "nodes", "multiply-adds", "error", "stays because"),
        [
            (
                layer.name,
                layer.kind,
                layer.geometry,
                kernels(layer),
                f"{count(layer.ops_before)} → 1" if layer.folded else "",
                f"{count(layer.macs_before)} → {count(layer.macs)}" if layer.folded else "",
                f"{layer.max_relative_error:.0e}" if layer.folded else "",
                layer.reason,
            )
            for layer in plan.layers
        ],
        "wwlrrrrw",
        title="Folding: what became of each layer",
    )


def lowering_tables(plan: FoldPlan, plans: Sequence[LoweringPlan]) -> Iterable[RenderableType]:
    """How each layer would be computed in each format and precision, and what the whole network has."""
    from edgefold.cli.output import table

    names = list(dict.fromkeys(layer.name for one in plans for layer in one.layers))
    ways = [way for way in Lowering if any(way in _costs(layer) for one in plans for layer in one.layers)]
    if names:
        yield table(
            ("layer", "structure", "for", *ways, "choice", "numbers", "because"),
            [row for name in names for row in _layer_rows(name, plans, ways)],
            f"wwl{'r' * len(ways)}lww",
            title=f"Lowering: how each layer would be computed on {plans[0].device}, one sample, one thread",
        )
        yield _legend(plans)
    yield table(
        ("whole network, one sample", "nodes", "FLOPs", "parameters", "weights", "layers", "reorderings"),
        [
            *(_total_row(name, totals) for name, totals in (("as written", plan.before), ("folded", plan.after)) if totals),
            *(_lowered_row(one) for one in plans),
        ],
        "lrrrrlr",
    )
    yield "The folded network counts what kernels that are not zero need, the files all that they hold."


def _costs(layer: LoweredLayer) -> dict[Lowering, Candidate]:
    """The ways to compute a layer, if there is more than one."""
    return {one.lowering: one for one in layer.candidates} if len(layer.candidates) > 1 else {}


def _layer_rows(name: str, plans: Sequence[LoweringPlan], ways: Sequence[Lowering]) -> list[tuple[str, ...]]:
    """One row for each way in which the files differ at this layer."""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    structure = ""
    for one in plans:
        for layer in one.layers:
            if layer.name == name:
                structure = layer.structure
                key = (*(_cell(layer, way) for way in ways), layer.choice.value, because(layer))
                found.setdefault(key, []).append((f"{one.format} {one.precision}", layer.chosen.numeric_class.value))
    rows = []
    for index, ((*costs, choice, reason), files) in enumerate(found.items()):
        names = dict.fromkeys(file for file, _ in files)
        where = "all" if len(names) == len(plans) else ", ".join(names)
        numbers = ", ".join(dict.fromkeys(kind for _, kind in files))
        rows.append(("" if index else name, "" if index else structure, where, *costs, choice, numbers, reason))
    return rows


def _cell(layer: LoweredLayer, way: Lowering) -> str:
    from edgefold.report.table import duration

    one = _costs(layer).get(way)
    return "" if one is None else f"{'* ' if way is layer.choice else ''}{duration(one.cost_ns)}"


def because(layer: LoweredLayer) -> str:
    """The reason of a choice, with where the times are from if it does not say so."""
    costs = _costs(layer)
    reason = layer.reason.replace(f"cheapest of {len(costs)} candidates", "cheapest")  # they are in the same row
    others = [source for source in dict.fromkeys(one.source for one in costs.values()) if source not in reason]
    return f"{reason} (times: {'; '.join(others)})" if others else reason


def _legend(plans: Sequence[LoweringPlan]) -> str:
    named = any(one.lowering != "auto" for one in plans)
    how = "as asked for" if named else "layer by layer; export and ship end it by timing the whole network, where they may"
    return (
        f"Chosen (*) {how}. Layers without times have one form. Numbers: fused and branched layers differ in their last bit, "
        "float ones are no integers."
    )


def _total_row(name: str, totals: Totals, layers: str = "", moves: str = "") -> tuple[str, ...]:
    from edgefold.report.plan_pictures import count
    from edgefold.report.table import size

    return (
        name,
        f"{totals.nodes:,}",
        count(totals.flops),
        count(totals.parameters),
        size(totals.weight_bytes),
        layers,
        moves,
    )


def _lowered_row(plan: LoweringPlan) -> tuple[str, ...]:
    from edgefold.report.plan_pictures import choice_summary

    assert plan.totals is not None
    return _total_row(f"{plan.format} {plan.precision}", plan.totals, choice_summary(plan.layers), str(plan.gathers))
