"""Folding modules: from the outermost inwards, each module that is one convolution becomes one layer.

Outermost first, so that a branch block folds as a whole and not branch by branch; what does not fold is taken apart, and the
reason is kept for the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from edgefold.export.fold.attempt import Folded, attempt
from edgefold.export.fold.evidence import Evidence
from edgefold.export.fold.kernel import FoldedConv
from edgefold.export.fold.progress import Report
from edgefold.export.fold.record import Recorder
from edgefold.export.fold.shadow import children, is_plain_layer
from edgefold.export.fold.state import Snapshot

ALREADY: Final = "is one convolution already"
NO_WORK: Final = "holds no convolution"


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What became of one module: the folded layer, or the reason why it stays."""

    name: str
    kind: str
    order: int
    calls: tuple[Evidence, ...]
    parameters_before: int
    folded: Folded | None
    reason: str


def fold_modules(recorder: Recorder, snapshot: Snapshot, report: Report) -> tuple[dict[int, FoldedConv], list[Decision]]:
    """The folded layers by the ids of their modules in the shadow tree, and what was decided for each module looked at.

    ``recorder`` has recorded; ``snapshot`` is from before.
    """
    folder = _Folder(recorder, snapshot, report)
    folder.fold(recorder.root)
    return folder.layers, folder.decisions


class _Folder:
    def __init__(self, recorder: Recorder, snapshot: Snapshot, report: Report) -> None:
        self.decisions: list[Decision] = []
        self.layers: dict[int, FoldedConv] = {}
        self._recorder = recorder
        self._changed = snapshot.changed()
        self._random = "draws random numbers" if snapshot.draws_random_numbers() else ""
        self._snapshot = snapshot
        self._settled = Snapshot(recorder.modules.values(), caches=True)
        self._order = {key: index for index, key in enumerate(recorder.order)}
        self._done: set[int] = set()
        self._report = report

    def fold(self, module: nn.Module) -> None:
        """Folds the module, or else its children."""
        key = id(module)
        if key in self._done or is_plain_layer(module) or isinstance(module, torch.jit.ScriptModule):
            return
        self._done.add(key)
        if key in self._order:
            self._report(self._order[key], len(self._order))
        if self._recorder.calls.get(key):
            if self._try(module):
                return
        elif key in self._order:
            self.decisions.append(self._decision(module, (), None, self._recorder.refused.get(key, "")))
        for _, child in children(module):
            self.fold(child)

    def _try(self, module: nn.Module) -> bool:
        key, recorder = id(module), self._recorder
        calls = tuple(recorder.calls[key])
        reason = recorder.refused.get(key) or self._random or self._hidden_in(module, calls)
        folded: Folded | None = None
        if not reason:
            if not any(call.convolutions or call.written_out for call in calls):
                reason = NO_WORK
            elif calls[0].ops == 1 and not calls[0].computed:
                reason = ALREADY
            else:
                found = attempt(module, calls)
                if isinstance(found, str):
                    reason = found
                else:
                    tree = self._tree(module)
                    after = {**self._snapshot.changed(tree), **self._settled.changed(tree)}
                    reason = next(iter(after.values()), "")
                    folded = None if reason else found
        self.decisions.append(self._decision(module, calls, folded, reason))
        if folded is not None:
            self.layers[key] = FoldedConv(folded.kernel, module)
        return folded is not None

    def _decision(self, module: nn.Module, calls: tuple[Evidence, ...], folded: Folded | None, reason: str) -> Decision:
        key = id(module)
        parameters = sum({id(one): one.numel() for one in module.parameters()}.values()) if folded or reason else 0
        return Decision(self._recorder.names[key], type(module).__name__, self._order[key], calls, parameters, folded, reason)

    def _hidden_in(self, module: nn.Module, calls: tuple[Evidence, ...]) -> str:
        """Why the state of a module is not known to stay as it is; empty if it is."""
        tree = self._tree(module)
        if reason := self._written_in(module, calls, tree):
            return reason
        for key in tree:
            if key in self._changed or key in self._snapshot.unseen:
                return self._changed.get(key) or self._snapshot.unseen[key]
            if key in self._snapshot.cached and any(call.pair for call in calls):
                return "calls a function with a cache, and is too large to be run again to see that the cache stays"
        return ""

    def _written_in(self, module: nn.Module, calls: tuple[Evidence, ...], tree: list[int]) -> str:
        """What of a module the network around it writes; empty if nothing."""
        writes = self._recorder.writes
        if not writes:
            return ""
        storages = {storage for call in calls for storage in (*call.parameters, *call.foreign)}
        if storages & writes.storages:
            return "uses a tensor that the network writes into"
        layers = (id(child) for key in tree for _, child in children(self._recorder.modules[key]))
        name = writes.set_from_outside(id(module), {*tree, *layers})
        return f"the network sets its '{name}' from outside" if name else ""

    def _tree(self, module: nn.Module) -> list[int]:
        """The ids of the watched modules under a module, itself included."""
        found, stack, seen = [], [module], set()
        while stack:
            one = stack.pop()
            if id(one) in seen or is_plain_layer(one):
                continue
            seen.add(id(one))
            found.append(id(one))
            stack.extend(child for _, child in children(one))
        return found
