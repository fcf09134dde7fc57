"""How a pass is run: it changes a model and says whether it did, and what it promises is checked on the result.

A pass is one function ``(model) -> (model, modified)``. What must hold before it (``requires``) and after it (``ensures``) are
checks ``(model) -> str | None`` that return the reason when they fail. Postconditions look at the model that the pass
returned, never at the one that it was given. The same infrastructure serves FX graphs and ONNX models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch.fx import GraphModule

from edgefold.errors import RuntimeFailure

M = TypeVar("M")

Check = Callable[[M], str | None]


@dataclass(frozen=True, slots=True)
class GraphPass(Generic[M]):
    """One rewrite with its conditions."""

    name: str
    run: Callable[[M], tuple[M, bool]]
    requires: tuple[Check[M], ...] = ()
    ensures: tuple[Check[M], ...] = ()


def run_passes(model: M, passes: Sequence[GraphPass[M]]) -> tuple[M, bool]:
    """Run passes in order; returns the model and whether any of them changed it.

    Raises:
        RuntimeFailure: a condition does not hold before or after a pass.
    """
    changed = False
    for one in passes:
        _check(one.name, "before", one.requires, model)
        model, modified = one.run(model)
        _check(one.name, "after", one.ensures, model)
        changed = changed or modified
    return model, changed


def _check(name: str, when: str, checks: Sequence[Check[M]], model: M) -> None:
    for check in checks:
        reason = check(model)
        if reason is not None:
            raise RuntimeFailure(f"pass '{name}': {reason} {when} it ran; please report this bug")


def clone(graph: GraphModule) -> GraphModule:
    """A copy whose nodes can be rewritten without touching the original; weights are shared, ``meta`` is copied."""
    return GraphModule(graph, copy.deepcopy(graph.graph))
