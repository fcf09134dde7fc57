"""Mixed precision: the fewest layers left float so that the accuracy is within a budget.

Layers are left float one after another in the order of their sensitivity, until the metric is within ``max_drop`` of the float
network; then each of them is tried in INT8 again, the least sensitive first, and stays there if the budget still holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    max_drop: float,
    progress: Callable[[], None] = lambda: None,
) -> MixedPrecision:
    """Moves the fewest layers from INT8 to float.

    Args:
        graph: the canonical graph.
        table: its scales; they are kept for the layers that stay in INT8.
        sensitivity: the ranking of its layers.
        evaluate: the metric.
        max_drop: how much the metric may fall below that of the float network, in points (hundredths).
        progress: called after each evaluation.

    Raises:
        CheckError: the budget cannot be met even with every layer float.
    """

    def metric(names: frozenset[str]) -> float:
        value = evaluate(insert_qdq(attach(graph, without(table, graph, names)), fold_weights=True))
        progress()
        return value

    reference = evaluate(graph)
    floor = reference - max_drop / 100
    before = current = metric(frozenset())
    chosen: list[str] = []
    for layer in sensitivity.layers:
        if current >= floor:
            break
        chosen.append(layer.node)
        current = metric(frozenset(chosen))
    if current < floor:
        raise CheckError(
            f"with every layer in float the metric is {current:.4f}, expected {floor:.4f} ({max_drop:g} points under the "
            "float network); give a larger --max-drop or more calibration data"
        )
    for name in reversed(chosen[:-1]):
        value = metric(frozenset(chosen) - {name})
        if value >= floor:
            chosen.remove(name)
            current = value
    return MixedPrecision(without(table, graph, frozenset(chosen)), tuple(chosen), reference, before, current)
