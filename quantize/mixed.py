"""Mixed precision: the fewest layers left float so that the accuracy is within a budget.

Layers are left float one after another in the order of their sensitivity, until the metric is within ``max_drop`` of the float
network; then each of them is tried in INT8 again, the least sensitive first, and stays there if the budget still holds. A layer
whose float form does not fit into the budget of time is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from torch.fx import GraphModule

from edgefold.errors import CheckError
from edgefold.quantize.calibrate import ScaleTable, attach, without
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.sensitivity import Sensitivity


class Evaluate(Protocol):
    """The metric of a graph on the evaluation data, higher is better, e.g. the share of right answers."""

    def __call__(self, graph: GraphModule, /) -> float:
        """The metric of ``graph``, which takes and returns what the canonical graph does."""
        ...


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """The outcome: ``float_layers`` are node names; metrics are on the evaluation data."""

    table: ScaleTable
    float_layers: tuple[str, ...]
    reference: float
    before: float
    after: float


def choose(
    graph: GraphModule,
    table: ScaleTable,
    sensitivity: Sensitivity,
    evaluate: Evaluate,
    *,
    max_drop: float | None,
    finish: Callable[[ScaleTable], ScaleTable] = lambda table: table,
    fits: Callable[[frozenset[str], Callable[[], ScaleTable]], bool] = lambda names, table: True,
    progress: Callable[[], None] = lambda: None,
) -> MixedPrecision:
    """Moves the fewest layers from INT8 to float.

    Args:
        graph: the canonical graph.
        table: its scales; they are kept for the layers that stay in INT8, but for rounded weights and corrected biases: these
            were chosen beside layers that may be float now.
        sensitivity: the ranking of its layers.
        evaluate: the metric.
        max_drop: how much the metric may fall below that of the float network, in points (hundredths); ``None``: it shall come
            as near to it as ``fits`` allows.
        finish: rounds and corrects a network with some layers in float.
        fits: whether the network may have these layers (node names) in float, e.g. by its latency; it is given what makes the
            table of scales of that network. Whatever is chosen was asked for.
        progress: called after each evaluation.

    Raises:
        CheckError: the budget cannot be met even with every layer float, or every layer that fits.
    """

    plain = replace(table, biases={}, rounded={})

    @cache
    def mixed(names: frozenset[str]) -> ScaleTable:
        return finish(without(plain, graph, names))

    def may(names: frozenset[str]) -> bool:
        return fits(names, lambda: mixed(names))

    def metric(names: frozenset[str]) -> float:
        value = evaluate(insert_qdq(attach(graph, mixed(names)), fold_weights=True))
        progress()
        return value

    reference = evaluate(graph)
    floor = reference - (max_drop or 0) / 100
    before = current = metric(frozenset())
    chosen: list[str] = []
    for layer in sensitivity.layers:
        if current >= floor:
            break
        if not may(frozenset((*chosen, layer.node))):
            continue
        value = metric(frozenset((*chosen, layer.node)))
        # With a floor to reach, a layer may pay only together with the next one; without, it must pay by itself.
        if max_drop is not None or value > current:
            chosen.append(layer.node)
            current = value
    if current < floor and max_drop is not None:
        which = "every layer" if len(chosen) == len(sensitivity.layers) else "every layer that --max-ms allows"
        raise CheckError(
            f"with {which} in float the metric is {current:.4f}, expected {floor:.4f} ({max_drop:g} points under the "
            "float network); give a larger budget or more calibration data"
        )
    floor = min(floor, current)
    for name in reversed(chosen[:-1]):
        value = metric(frozenset(chosen) - {name})
        # Fewer layers in float are not always faster: conversions come with the integers.
        if value >= floor and may(frozenset(chosen) - {name}):
            chosen.remove(name)
            current = value
    return MixedPrecision(mixed(frozenset(chosen)), tuple(chosen), reference, before, current)
