"""Who is told how far folding is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

SHARES: Final = 100  # steps of a stage at most: a layer of 262,144 modules is no reason to draw as many times

Report = Callable[[int, int], None]  # steps done, steps in all


class Stages(Protocol):
    """Told of stages and their steps; `edgefold.network.Progress` is the same."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """A new stage begins, with so many steps if that is known."""
        ...

    def step(self) -> None:
        """One step of the stage is done."""
        ...


class Told:
    """Turns "so many of so many" into stages and steps for someone who may not be there."""

    def __init__(self, stages: Stages | None) -> None:
        self._stages = stages

    def begins(self, name: str) -> None:
        """A stage whose length is not known."""
        if self._stages is not None:
            self._stages.stage(name)

    def counted(self, name: str) -> Report:
        """A stage whose work reports what is done; it begins with the first report."""
        shown = -1

        def report(done: int, total: int) -> None:
            nonlocal shown
            if self._stages is None:
                return
            steps = max(1, min(SHARES, total))
            if shown < 0:
                self._stages.stage(name, steps)
                shown = 0
            reached = min(steps, done * steps // max(1, total))
            for _ in range(shown, reached):
                self._stages.step()
            shown = max(shown, reached)

        return report
