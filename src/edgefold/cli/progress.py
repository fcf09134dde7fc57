"""How commands show on stderr what they are doing: bars on a terminal, one line a stage (or one in all) in a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import TaskID


class StageBar(Protocol):
    """A context manager that is told of stages and steps (see `edgefold.shipping.Progress`)."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def stage(self, name: str, steps: int | None = None) -> None:
        """A new stage begins, with so many steps if that is known."""
        ...

    def step(self) -> None:
        """One step of the stage is done."""
        ...


class LineStages:
    """One line a stage."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to put away."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `StageBar.stage`."""
        print(f"{name} …", file=sys.stderr, flush=True)

    def step(self) -> None:
        """See `StageBar.step`."""


class OneLine(LineStages):
    """One line for all stages."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> Self:
        print(self._text, file=sys.stderr, flush=True)
        return self

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `StageBar.stage`."""


class BarStages:
    """A bar a stage, with the time that it took."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._finish()
        self._progress.stop()

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `StageBar.stage`."""
        self._finish()
        self._task = self._progress.add_task(name, total=steps)

    def step(self) -> None:
        """See `StageBar.step`."""
        if self._task is not None:
            self._progress.advance(self._task)

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self._progress.tasks if task.id == self._task)
            total = task.total or 1
            self._progress.update(self._task, total=total, completed=total)


def stages(text: str | None = None) -> StageBar:
    """What fits stderr: bars, or else a line a stage, or ``text`` alone."""
    if sys.stderr.isatty():
        return BarStages()
    return LineStages() if text is None else OneLine(text)
