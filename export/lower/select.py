"""Chooses how each layer is computed.

`choose` takes the layers with the most to gain first. A layer takes its cheapest candidate whose channel order fits
without a gather, or with one where the time that it saves is more than the gather's. A candidate with more weights than
another one must be faster by more than `TIE`. A uniform lowering takes the named candidate, or the nearest one that the layer
has, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch.fx import Node

from edgefold.artifact import Format, Precision
from edgefold.export.lower.budget import caps
from edgefold.export.lower.candidates import Option, Options
from edgefold.export.lower.costs import CostModel, CostTable, known_cost
from edgefold.export.lower.estimate import Rule, estimate_ns, gather_limit, rule_for
from edgefold.export.lower.fitted import fitted_rule
from edgefold.export.lower.permute import Orders
from edgefold.export.plan import ESTIMATED, Candidate, LoweredLayer, Lowering, NumericClass
from edgefold.quantize.graph import module_path
from edgefold.schemes import scheme_of

# A gain in time that is no reason for more weights: two measurements of one file differ by as much.
TIE: Final = 0.02

# What stands in for a lowering that a layer does not have.
NEAREST: Final = {
    Lowering.KEEP: (Lowering.KEEP, Lowering.DENSE),
    Lowering.DENSE: (Lowering.DENSE, Lowering.KEEP),
    Lowering.GROUPED: (Lowering.GROUPED, Lowering.KEEP, Lowering.SPLIT, Lowering.DENSE),
    Lowering.SPLIT: (Lowering.SPLIT, Lowering.GROUPED, Lowering.KEEP, Lowering.DENSE),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The option taken for a layer, and its entry in the plan."""

    options: Options
    option: Option
    layer: LoweredLayer


class Pricing:
    """The costs of candidates in one format and precision, from the first model that knows them."""

    def __init__(self, format: Format, precision: Precision, models: Sequence[CostModel], floats: frozenset[Node]) -> None:
        """``floats`` are the convolutions that stay float in a quantized network."""
        self.format = format
        self._precision, self._models, self._floats = precision, models, floats

    def precision(self, layer: Options) -> Precision:
        """The numbers that a layer computes with."""
        return Precision.FP32 if layer.conv.node in self._floats else self._precision

    def rule(self, layer: Options) -> tuple[Rule, str]:
        """What estimates the times of a layer that no model knows, and its source: of the first table with enough layers."""
        precision = self.precision(layer)
        for model in self._models:
            fitted = fitted_rule(model, self.format, precision) if isinstance(model, CostTable) else None
            if fitted is not None:
                return fitted, f"{ESTIMATED} from {model.source.removeprefix(f'{ESTIMATED} from ')}"
        return rule_for(self.format, precision), ESTIMATED

    def candidates(self, layer: Options) -> tuple[Candidate, ...]:
        """The plan's entries for the options of a layer, in their order.

        Times of one layer are compared with each other, so they are measured ones only if all of them are.
        """
        precision = self.precision(layer)
        known = [known_cost(self._models, option.geometry, option.lowering, self.format, precision) for option in layer.options]
        measured = [cost for cost in known if cost is not None]
        if len(measured) < len(known):
            rule, source = self.rule(layer)
            measured = [(estimate_ns(rule, option.geometry, option.lowering), source) for option in layer.options]
        return tuple(
            Candidate(
                option.lowering,
                _numeric_class(option, precision),
                macs=option.geometry.macs(option.lowering),
                weight_bytes=option.geometry.weights(option.lowering) * scheme_of(precision).weight_bytes,
                cost_ns=nanoseconds,
                source=source,
            )
            for option, (nanoseconds, source) in zip(layer.options, measured, strict=True)
        )


def _numeric_class(option: Option, precision: Precision) -> NumericClass:
    if not scheme_of(precision).calibrated:
        return NumericClass.FLOAT
    return NumericClass.FUSED if option.point is None else NumericClass.BRANCHED


def choose(
    layers: Sequence[Options], orders: Orders, pricing: Pricing, lowering: Lowering | None, budget_bytes: int | None = None
) -> list[Choice]:
    """One choice a layer, in the order given; ``lowering`` is None for the cheapest. Grants the wishes of what it chooses.

    ``budget_bytes`` is what the weights of all layers may have together, as far as smaller candidates allow it.
    """
    priced = [(layer, pricing.candidates(layer)) for layer in layers]
    most = caps([candidates for _, candidates in priced], budget_bytes)
    choices: dict[int, Choice] = {}
    for index in sorted(range(len(priced)), key=lambda index: -_gain(priced[index][1])):
        layer, candidates = priced[index]
        if lowering is None:
            option, reason = _cheapest(layer, candidates, orders, pricing, most[index])
        else:
            option, reason = _named(layer, orders, lowering)
        entry = LoweredLayer(
            module_path(layer.conv.node),
            candidates,
            option.lowering,
            reason,
            str(option.geometry),
            layer.structure,
            layer.kernel_map,
        )
        choices[index] = Choice(layer, option, entry)
    return [choices[index] for index in range(len(priced))]


def _gain(candidates: Sequence[Candidate]) -> float:
    costs = [candidate.cost_ns for candidate in candidates]
    return max(costs) - min(costs)


def _cheapest(
    layer: Options, candidates: Sequence[Candidate], orders: Orders, pricing: Pricing, most_bytes: int | None
) -> tuple[Option, str]:
    if len(layer.options) == 1:
        return layer.options[0], next(iter(layer.missing.values()), "it has one form only")
    ranked = _ranked(list(zip(layer.options, candidates, strict=True)))
    refused = ""
    if most_bytes is not None:
        small = [pair for pair in ranked if pair[1].weight_bytes <= most_bytes]
        refused = f"; {ranked[0][0].lowering} would make the file too large"
        ranked = small
    for place, (option, candidate) in enumerate(ranked):
        last = most_bytes is not None and place == len(ranked) - 1
        saved = ranked[min(place + 1, len(ranked) - 1)][1].cost_ns - candidate.cost_ns
        limit = None if last else max(gather_limit(pricing.rule(layer)[0], saved), 0)
        wish = option.wish(layer.conv)
        moved = 0 if wish is None else orders.grant(wish, limit=limit)
        if moved is not None:
            gathers = f", with gathers of {moved} elements" if moved else ""
            fastest, best = min(ranked[place:], key=lambda pair: pair[1].cost_ns)
            if best.cost_ns < candidate.cost_ns:
                why = f"smaller than {fastest.lowering}, which is faster by no more than {100 * TIE:.0f} % ({candidate.source})"
            else:
                why = f"cheapest of {len(candidates)} candidates ({candidate.source}){_price_of_size(candidate, candidates)}"
            return option, f"{why}{gathers}{refused}"
        refused += f"; {option.lowering} would need gathers that cost more than it saves"
    raise AssertionError("a layer always has a candidate without a wish")


def _ranked(pairs: list[tuple[Option, Candidate]]) -> list[tuple[Option, Candidate]]:
    """The cheapest first; one with fewer weights stands before those that are faster by no more than `TIE`."""
    ranked: list[tuple[Option, Candidate]] = []
    rest = sorted(pairs, key=lambda pair: (pair[1].cost_ns, pair[1].weight_bytes))
    while rest:
        limit = rest[0][1].cost_ns * (1 + TIE)
        near = [pair for pair in rest if pair[1].cost_ns <= limit]
        first = min(near, key=lambda pair: pair[1].weight_bytes)  # the cheapest of the smallest: min keeps the order
        ranked.append(first)
        rest.remove(first)
    return ranked


def _price_of_size(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """What the weights buy that another candidate would not need."""
    smaller = [one for one in candidates if one.weight_bytes < chosen.weight_bytes]
    if not smaller:
        return ""
    other = min(smaller, key=lambda one: one.cost_ns)
    saved_us, more_kb = (other.cost_ns - chosen.cost_ns) / 1e3, (chosen.weight_bytes - other.weight_bytes) / 1e3
    return f", {saved_us:.1f} µs faster than {other.lowering} for {more_kb:.1f} kB more" if saved_us > 0 else ""


def _named(layer: Options, orders: Orders, lowering: Lowering) -> tuple[Option, str]:
    have = {option.lowering: option for option in layer.options}
    name = next(name for name in NEAREST[lowering] if name in have)
    option = have[name]
    wish = option.wish(layer.conv)
    moved = orders.grant(wish) if wish is not None else 0
    reason = f"asked for {lowering}"
    if name is not lowering:
        reason += f", but {layer.missing[lowering]}"
    return option, f"{reason}, with gathers of {moved} elements" if moved else reason
