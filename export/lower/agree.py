"""One numeric class a layer for all formats, so that their integers can be equal.

Each format takes its cheapest lowering of each layer first. Where these are of different classes, the class is taken that makes
the formats slower by the least, as the sum over them of (cheapest cost in the class) / (cheapest cost), and every format takes
its cheapest lowering of that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgefold.artifact import Format, Precision
from edgefold.export.lower.costs import CostModel
from edgefold.export.lower.lower import lower
from edgefold.export.plan import LoweredLayer, Lowering, LoweringPlan, NumericClass
from edgefold.export.program import Program


def agree(
    program: Program,
    *,
    formats: Sequence[Format],
    precision: Precision,
    lowering: Lowering | str = "auto",
    device: str = "host",
    costs: CostModel | None = None,
) -> dict[Format, dict[str, Lowering]]:
    """The lowering of each layer, by module path, in each format: of one numeric class in all of them.

    Args:
        program: see `edgefold.export.lower.lower.lower`, as all that follow.
        formats: those that shall agree.
        precision: an integer precision.
        lowering: one form for all layers, or "auto".
        device: where they will run.
        costs: times measured there.
    """
    plans = {
        format: lower(program, format=format, precision=precision, lowering=lowering, device=device, costs=costs, whole=True).plan
        for format in formats
    }
    return agreed(plans)


def agreed(plans: Mapping[Format, LoweringPlan]) -> dict[Format, dict[str, Lowering]]:
    """The same from the plans that the formats make on their own."""
    found: dict[Format, dict[str, Lowering]] = {format: {} for format in plans}
    for layers in zip(*(plan.layers for plan in plans.values()), strict=True):
        numeric = _class(layers)
        for format, layer in zip(plans, layers, strict=True):
            found[format][layer.name] = _choice(layer, numeric)
    return found


def _class(layers: Sequence[LoweredLayer]) -> NumericClass:
    chosen = {layer.chosen.numeric_class for layer in layers}
    if len(chosen) == 1:
        return chosen.pop()
    common = [numeric for numeric in NumericClass if all(_costs(layer, numeric) for layer in layers)]
    return min(common, key=lambda numeric: sum(min(_costs(layer, numeric)) / _cheapest(layer) for layer in layers))


def _costs(layer: LoweredLayer, numeric: NumericClass) -> list[float]:
    return [candidate.cost_ns for candidate in layer.candidates if candidate.numeric_class is numeric]


def _cheapest(layer: LoweredLayer) -> float:
    return max(min(candidate.cost_ns for candidate in layer.candidates), 1e-9)


def _choice(layer: LoweredLayer, numeric: NumericClass) -> Lowering:
    if layer.chosen.numeric_class is numeric:
        return layer.choice
    fitting = [candidate for candidate in layer.candidates if candidate.numeric_class is numeric]
    return min(fitting, key=lambda candidate: candidate.cost_ns).lowering
