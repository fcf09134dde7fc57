"""Where a command's words go: its result to stdout, as a picture for people or as JSON; everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Wide enough for every table where nothing says how wide the reader's screen is.
_PIPE_WIDTH = 160


class Output:
    """The result stream of one command."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json

    def show(self, result: Any, picture: Callable[[], Iterable[RenderableType]]) -> None:
        """Print a result: as JSON (a result type, or plain data) or as what ``picture`` makes of it."""
        if self._as_json:
            self._stream.write(json.dumps(_plain(result), indent=2, allow_nan=False) + "\n")
        else:
            console = self._console()
            for part in picture():
                console.print(part)
        self._stream.flush()

    def say(self, lines: Iterable[str]) -> None:
        """Words beside a result: below it for people; JSON stands alone on its stream, so there they go to stderr."""
        for line in lines:
            print(line, file=sys.stderr if self._as_json else self._stream, flush=True)

    def _console(self) -> Console:
        from rich.console import Console

        # Our words are data: no markup in them, and no guesses at what is a number or a path.
        return Console(file=self._stream, markup=False, highlight=False, width=None if self._stream.isatty() else _PIPE_WIDTH)


@contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """The result stream, while everything that is printed by others (converters write to stdout) goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        # Both ways to stdout: Python's own and the file descriptor that C++ writes to.
        with os.fdopen(os.dup(saved), "w", encoding="utf-8") as stream, redirect_stdout(sys.stderr), warnings.catch_warnings():
            if not os.environ.get("EDGEFOLD_DEBUG"):
                # Words of the libraries below; ours are errors or part of a result.
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
            yield Output(stream, as_json=as_json)
    finally:
        logging.disable(logging.NOTSET)
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on; the function that it gives changes the text.

    On a terminal it is one line with a spinner; elsewhere (a log) each text is a line of its own.
    """
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if console.is_terminal:
        with console.status(text) as status:
            yield status.update
    else:
        print(text, file=sys.stderr, flush=True)
        yield lambda message: print(message, file=sys.stderr, flush=True)


def table(headers: Sequence[str], lines: Iterable[Sequence[str]], align: str, *, title: str | None = None) -> RenderableType:
    """A table. ``align`` has one letter a column: ``l`` for words, ``w`` for sentences (which may wrap), ``r`` for numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for header, letter in zip(headers, align, strict=True):
        made.add_column(header, justify="right" if letter == "r" else "left", no_wrap=letter != "w")
    for line in lines:
        made.add_row(*line)
    return made


def _plain(result: Any) -> Any:
    """A result type with its schema, or plain data with such results in it."""
    from edgefold.results import to_dict

    if is_dataclass(result) and not isinstance(result, type):
        return to_dict(result)
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [_plain(value) for value in result]
    return result
