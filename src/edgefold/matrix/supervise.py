"""Runs the cells of one model in subprocesses with caps, so that a crash, a hang or a lack of memory costs one cell only.

A cell that dies or fills its memory ends with its own process (see `edgefold.matrix.worker`); one that takes too long is ended
with the process of its model, and another begins with the cells that are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO, Any

from edgefold.matrix.cells import FORKS, Caps, Cell, CellOptions, CellResult, cell_from, failed, plain_cell, with_cap
from edgefold.matrix.worker import rss_bytes
from edgefold.results import from_dict

_TAIL_BYTES = 2000
_SIGKILL = getattr(signal, "SIGKILL", 9)
_NEAR = 0.8  # of the memory that a process may use: it holds some pages less than it asked for
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate memory")


@dataclass
class Stop:
    """Ends all running cells of a matrix when it is interrupted."""

    asked: threading.Event = field(default_factory=threading.Event)
    _running: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, pid: int) -> None:
        """A process has started."""
        with self._lock:
            self._running.add(pid)
        if self.asked.is_set():
            kill_group(pid)

    def forget(self, pid: int) -> None:
        """A process has ended."""
        with self._lock:
            self._running.discard(pid)

    def now(self) -> None:
        """End what runs, and start nothing new."""
        self.asked.set()
        with self._lock:
            for pid in self._running:
                kill_group(pid)


def kill_group(pid: int) -> None:
    """Ends a process that leads a group, with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


def run_cells(
    cells: Sequence[Cell], keys: Sequence[str], options: CellOptions, caps: Caps, stop: Stop | None = None
) -> Iterator[CellResult]:
    """The result of each cell of one model, as it comes; none of them raises.

    Args:
        cells: of one model with one set of arguments.
        keys: their keys.
        options: what they have in common.
        caps: what each may use.
        stop: ends the iteration early when it is asked to.
    """
    stop = stop or Stop()
    left = list(zip(cells, keys, strict=True))
    while left and not stop.asked.is_set():
        done = 0
        for result in _one_process(left if FORKS else left[:1], options, caps, stop):
            done += 1
            yield result
        left = left[done:]


def _one_process(left: Sequence[tuple[Cell, str]], options: CellOptions, caps: Caps, stop: Stop) -> Iterator[CellResult]:
    """The results of the cells that the process of a model gets through; the last is that of the cell it died at, if it did."""
    job = {
        "cells": [plain_cell(cell) for cell, _ in left],
        "keys": [key for _, key in left],
        "options": asdict(options),
        "memory_bytes": caps.memory_bytes,
    }
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgefold.matrix.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        stop.watch(process.pid)
        clock = _Clock(caps.time_s, lambda: kill_group(process.pid))
        try:
            stage, done = "load", 0
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as stream:
                json.dump(job, stream)
            clock.start()
            for line in _lines(process.stdout):
                if "stage" in line:
                    stage = line["stage"]
                    continue
                if "died" in line:
                    result = _death(left[done], stage, line["died"], line["peak_bytes"], clock, caps, _tail(errors))
                else:
                    result = from_dict(CellResult, line["result"])
                clock.start()
                done += 1
                yield with_cap(result, caps)
            code, peak_bytes = _ended(process)
            if done < len(left) and not stop.asked.is_set():
                yield with_cap(_death(left[done], stage, code, peak_bytes, clock, caps, _tail(errors)), caps)
        finally:
            clock.cancel()
            kill_group(process.pid)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            stop.forget(process.pid)


def _ended(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Waits for the end of a process; its exit code, and the most memory that it had in bytes (0 where that is not told)."""
    if not hasattr(os, "wait4"):
        return process.wait(), 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, rss_bytes(usage)


class _Clock:
    """Calls a function when a cell has used up its time; started anew for each."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds, self._ring = seconds, ring
        self._timer: threading.Timer | None = None
        self._since = time.monotonic()
        self.rang = False

    def start(self) -> None:
        self.cancel()
        self._since = time.monotonic()
        self._timer = threading.Timer(self._seconds, self._out)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._since

    def _out(self) -> None:
        self.rang = True
        self._ring()


def _lines(stream: IO[str]) -> Iterator[dict[str, Any]]:
    for text in stream:
        with contextlib.suppress(ValueError):  # half a line of a process that was ended
            yield json.loads(text)


def _tail(errors: IO[bytes]) -> str:
    if not hasattr(os, "pread"):  # Windows, where the process has ended by now
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return errors.read().decode(errors="replace")
    # A seek would move the place at which a process that still runs writes.
    start = max(0, os.fstat(errors.fileno()).st_size - _TAIL_BYTES)
    return os.pread(errors.fileno(), _TAIL_BYTES, start).decode(errors="replace")


def _death(at: tuple[Cell, str], stage: str, code: int, peak_bytes: int, clock: _Clock, caps: Caps, tail: str) -> CellResult:
    cell, key = at
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "no message")
    if clock.rang:
        kind, message = "Timeout", f"took longer than {caps.time_s:g} s; give it more with --cell-time"
    elif code == -_SIGKILL and peak_bytes < _NEAR * caps.memory_bytes:
        kind = "Crash"
        message = (
            f"the process was killed at {peak_bytes / 1e9:.2g} GB of {caps.memory_bytes / 1e9:g} GB that it may use: the system "
            "does so when its memory is full, or another program did; compute it anew with --retry, and fewer --jobs"
        )
    elif code == -_SIGKILL or (code == -signal.SIGABRT and any(words in tail for words in _OUT_OF_MEMORY)):
        kind, message = "Memory", f"needed more than {caps.memory_bytes / 1e9:g} GB; give it more with --cell-memory ({last})"
    else:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        kind, message = "Crash", f"the process ended with {how}: {last}"
    return replace(failed(cell, key, stage, kind, message[:500], time_s=clock.elapsed_s), peak_rss_bytes=peak_bytes)


def run_job(job: dict[str, Any]) -> list[dict[str, Any]]:
    """`run_cells` with plain data on both sides, for a worker of a cluster."""
    from edgefold.results import to_dict

    cells = [cell_from(cell) for cell in job["cells"]]
    return [to_dict(result) for result in run_cells(cells, job["keys"], CellOptions(**job["options"]), Caps(**job["caps"]))]
