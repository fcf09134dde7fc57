"""What fold and lower decided, as rows that the page draws: totals before and after, a card a layer, a choice a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgefold.export.plan import FoldedLayer, FoldPlan, LoweredLayer, LoweringPlan, TimedForm
from edgefold.report.content import Shipment
from edgefold.report.kernel_map import kernel_image
from edgefold.report.table import duration


@dataclass(frozen=True, slots=True)
class Bar:
    """A count before and after folding; shares are of the larger one, in percent, for the lengths of two bars."""

    name: str
    before: str
    after: str
    before_share: float
    after_share: float


@dataclass(frozen=True, slots=True)
class LayerCard:
    """One layer of the fold plan. ``image`` is a ``data:`` URI, empty where the layer has no kernel map."""

    name: str
    kind: str
    geometry: str
    folded: bool
    reason: str
    image: str
    alt: str
    pixels: tuple[int, int]  # width, height of the image on the page
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What one artifact does with one layer, and the alternatives in a tooltip."""

    lowering: str
    detail: str


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """One layer in all artifacts; a cell is ``None`` where the artifact does not have the layer."""

    layer: str
    cells: tuple[Choice | None, ...]


def totals(plan: FoldPlan) -> tuple[Bar, ...]:
    """What the whole network has before and after; nothing where no layer was folded."""
    before, after = plan.before, plan.after
    if before is None or after is None or not any(layer.folded for layer in plan.layers):
        return ()
    return (
        _bar("graph nodes", before.nodes, after.nodes),
        _bar("FLOPs", before.flops, after.flops),
        _bar("parameters", before.parameters, after.parameters),
        _bar("bytes of weights in float32", before.weight_bytes, after.weight_bytes),
    )


def layer_cards(plan: FoldPlan) -> tuple[LayerCard, ...]:
    """One card a layer, in execution order."""
    return tuple(_card(layer) for layer in plan.layers)


def choices(shipment: Shipment) -> tuple[tuple[str, ...], tuple[ChoiceRow, ...]]:
    """The names of the artifacts that have a lowering plan, and one row a layer."""
    plans = [(variant.name, variant.lowering) for variant in shipment.variants if variant.lowering is not None]
    by_layer = [{layer.name: layer for layer in plan.layers} for _, plan in plans]
    names = dict.fromkeys(layer.name for _, plan in plans for layer in plan.layers)
    table = tuple(ChoiceRow(name, tuple(_choice(found.get(name)) for found in by_layer)) for name in names)
    return tuple(name for name, _ in plans), table


def choice_summary(layers: Sequence[LoweredLayer]) -> str:
    """How often each lowering was chosen: "7 grouped, 2 dense"."""
    return ", ".join(f"{count} {lowering}" for lowering, count in Counter(layer.choice for layer in layers).most_common())


def closing_text(plan: LoweringPlan) -> str:
    """How the choice was closed, in one line; empty where nothing is to be said."""
    found = plan.timing
    if found is None:
        return plan.reason
    forms = ", ".join(_timed(form) for form in found.forms)
    reasons = "; ".join(reason for reason in (found.reason, plan.reason) if reason)
    return f"whole network in {found.rounds} interleaved rounds on {found.device}: {forms}; {found.winner} is kept: {reasons}"


def _timed(form: TimedForm) -> str:
    if form.median_ns is None:
        return f"{form.name} not timed ({form.note})"
    return f"{form.name} {duration(form.median_ns)}"


def count(value: int) -> str:
    """A count for people: 812, 12.3 k, 4.56 M."""
    for unit, factor in (("", 1), (" k", 1e3), (" M", 1e6)):
        if value / factor < 999.5:
            return f"{value / factor:.3g}{unit}"
    return f"{value / 1e9:.3g} G"


def _bar(name: str, before: int, after: int) -> Bar:
    most = max(before, after, 1)
    return Bar(name, count(before), count(after), 100 * before / most, 100 * after / most)


def _card(layer: FoldedLayer) -> LayerCard:
    image, alt, pixels = "", "", (0, 0)
    facts = []
    if layer.kernel_map is not None:
        found = layer.kernel_map
        image = kernel_image(found)
        alt = f"kernel map of {layer.name}: {found.full} whole kernels, {found.centre} centre taps, {found.zero} zeros"
        scale = 96 / max(found.in_channels, found.out_channels)
        pixels = (max(4, round(found.in_channels * scale)), max(4, round(found.out_channels * scale)))
        facts.append(f"{count(found.full)} whole, {count(found.centre)} 1×1, {count(found.zero)} zero")
    if layer.folded:
        facts.append(f"{count(layer.ops_before)} nodes → 1")
        facts.append(f"{count(layer.macs_before)} → {count(layer.macs)} multiply-adds")
        facts.append(f"error ≤ {layer.max_relative_error:.0e}")
    return LayerCard(layer.name, layer.kind, layer.geometry, layer.folded, layer.reason, image, alt, pixels, tuple(facts))


def _choice(layer: LoweredLayer | None) -> Choice | None:
    if layer is None:
        return None
    offers = "; ".join(f"{c.lowering} {duration(c.cost_ns)} ({c.source})" for c in layer.candidates)
    return Choice(layer.choice.value, f"{layer.reason}. Candidates: {offers}" if offers else layer.reason)
