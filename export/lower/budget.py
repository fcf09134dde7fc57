"""Keeps the weights of a network within a number of bytes, at the smallest cost in time.

Every layer starts at its fastest candidate. While the weights are too many, the layer that loses least time for each byte
that it saves takes the next smaller candidate (the greedy step of a multiple-choice knapsack).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefold.export.plan import Candidate


def caps(layers: Sequence[Sequence[Candidate]], budget_bytes: int | None) -> list[int | None]:
    """For each layer the most bytes that its weights may have, ``None`` where the fastest candidate is within the budget.

    The caps may still pass the budget where no smaller candidates are left.
    """
    if budget_bytes is None:
        return [None] * len(layers)
    fastest = [min(candidates, key=lambda one: (one.cost_ns, one.weight_bytes)) for candidates in layers]
    taken = list(fastest)
    excess = sum(one.weight_bytes for one in taken) - budget_bytes
    while excess > 0:
        steps = [
            ((other.cost_ns - taken[index].cost_ns) / (taken[index].weight_bytes - other.weight_bytes), index, other)
            for index, candidates in enumerate(layers)
            for other in candidates
            if other.weight_bytes < taken[index].weight_bytes
        ]
        if not steps:
            break
        _, index, other = min(steps, key=lambda step: step[:2])
        excess -= taken[index].weight_bytes - other.weight_bytes
        taken[index] = other
    return [
        None if now.weight_bytes >= first.weight_bytes else now.weight_bytes for now, first in zip(taken, fastest, strict=True)
    ]
