"""The whole matrix: takes what is done from the folder, has the rest computed here or on a cluster, keeps every result at once.

DIR/cells/KEY.json   one result a cell, written when it is there; a run that is interrupted goes on from these
DIR/matrix.json      all results of the last run
DIR/matrix.html      the same as a page
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgefold.artifact import Format, Precision, atomic_path
from edgefold.errors import ArtifactError, DeviceError, MissingExtraError, OutputError, UsageError
from edgefold.matrix.cells import (
    Caps,
    Cell,
    CellOptions,
    CellResult,
    Entry,
    by_model,
    cell_key,
    cells_of,
    failed,
    is_outgrown,
    plain_cell,
)
from edgefold.matrix.supervise import Stop, run_cells, run_job
from edgefold.models.fingerprint import source_digest
from edgefold.results import from_dict, to_json

OnResult = Callable[[CellResult], None]
_CONNECT_S = 20


@dataclass(frozen=True, slots=True)
class Matrix:
    """The results of a run, in the order of the list; ``cached`` of them were there before."""

    cells: tuple[CellResult, ...]
    date: str
    cached: int = 0

    @property
    def passed(self) -> bool:
        """Every cell passed."""
        return all(cell.passed for cell in self.cells)


def run_matrix(
    entries: Sequence[Entry],
    formats: Sequence[Format],
    precisions: Sequence[Precision],
    out: Path,
    options: CellOptions | None = None,
    caps: Caps | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    progress: OnResult = lambda result: None,
) -> Matrix:
    """Exports and verifies (and measures, if asked to) every model in every format and precision.

    Args:
        entries: the models.
        formats: of the files.
        precisions: of the files.
        out: the folder of results; what is there already is taken over.
        options: what all cells have in common.
        caps: what one cell may use.
        jobs: how many models are worked on at once on this machine.
        scheduler: the address of a Dask scheduler; its workers need Edgefold and see files of models under the same paths.
        retry: compute cells anew that failed before; those that failed for a smaller cap are computed anew in any case.
        progress: called with each result, also those that were there.

    Raises:
        UsageError: nothing to do, or a model is named twice.
        OutputError: the folder cannot be written.
        MissingExtraError: a scheduler is given and Dask is not installed.
        DeviceError: the scheduler is out of reach.
    """
    options, caps = options or CellOptions(), caps or Caps()
    cells = cells_of(entries, formats, precisions)
    if not cells:
        raise UsageError("the matrix has no cells; give at least one model, one format and one precision")
    contents = {name: source_digest(name) for name in {entry.name for entry in entries}}
    keys = [cell_key(cell, options, contents[cell.entry.name]) for cell in cells]
    twice = next((cell for index, cell in enumerate(cells) if keys[index] in keys[:index]), None)
    if twice is not None:
        raise UsageError(f"model '{twice.entry.label}' is in the list twice; name every model once")
    store = _Store(out)
    found = {
        key: result
        for key in keys
        if (result := store.read(key)) is not None and (result.passed or not (retry or is_outgrown(result, caps)))
    }
    cached = len(found)
    for result in found.values():
        progress(result)
    todo = [(cell, key) for cell, key in zip(cells, keys, strict=True) if key not in found]
    for result in _on_cluster(todo, options, caps, scheduler) if scheduler else _here(todo, options, caps, jobs):
        if result.error != "Cluster":  # the cell itself was not judged
            store.write(result)
        found[result.key] = result
        progress(result)
    matrix = Matrix(tuple(found[key] for key in keys), datetime.now(UTC).isoformat(timespec="seconds"), cached)
    store.write_summary(matrix)
    return matrix


class _Store:
    """The folder of results."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._cells = out / "cells"
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder '{out}' cannot be written: {error.strerror}; choose another one") from error

    def read(self, key: str) -> CellResult | None:
        """The result that is kept under a key. A file that cannot be read counts as none: it is computed anew."""
        try:
            return from_dict(CellResult, json.loads((self._cells / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, ArtifactError):
            return None

    def write(self, result: CellResult) -> None:
        """Keeps a result."""
        with atomic_path(self._cells / f"{result.key}.json", force=True) as temporary:
            temporary.write_text(to_json(result) + "\n", encoding="utf-8")

    def write_summary(self, matrix: Matrix) -> None:
        """The whole as JSON and as a page."""
        from edgefold.matrix.page import render

        for name, text in (("matrix.json", to_json(matrix) + "\n"), ("matrix.html", render(matrix))):
            with atomic_path(self._out / name, force=True) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _groups(todo: Sequence[tuple[Cell, str]], wanted: int) -> list[list[tuple[Cell, str]]]:
    """Work for one process each: the cells of a model, cut up where there are fewer models than processes."""
    models = len({cell.entry.label for cell, _ in todo})
    return by_model(todo, -(-wanted // max(1, models)))


def _here(todo: Sequence[tuple[Cell, str]], options: CellOptions, caps: Caps, jobs: int) -> Iterator[CellResult]:
    """Computes cells on this machine, ``jobs`` processes at a time."""
    results: queue.SimpleQueue[CellResult | Exception] = queue.SimpleQueue()
    stop = Stop()

    def work(group: Sequence[tuple[Cell, str]]) -> None:
        try:
            for result in run_cells([cell for cell, _ in group], [key for _, key in group], options, caps, stop):
                results.put(result)
        except Exception as error:  # raised again below, in the thread of the caller
            results.put(error)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for group in _groups(todo, jobs):
                pool.submit(work, group)
            for _ in todo:
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            stop.now()
            pool.shutdown(wait=True, cancel_futures=True)


def _absolute(name: str) -> str:
    """The name of a model with the whole path of its file: a worker runs in another folder."""
    file, colon, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    return f"{Path(file).resolve()}{colon}{function}" if Path(file).is_file() else name


def _on_cluster(todo: Sequence[tuple[Cell, str]], options: CellOptions, caps: Caps, address: str) -> Iterator[CellResult]:
    """Computes cells on the workers of a Dask cluster."""
    try:
        from distributed import Client
        from distributed import as_completed as completed
    except ImportError as error:
        raise MissingExtraError("distributed", "cluster", "a matrix on a cluster") from error
    try:
        client = Client(address, timeout=_CONNECT_S)  # type: ignore[no-untyped-call]  # distributed does not type it
    except (OSError, TimeoutError, ValueError) as error:
        raise DeviceError(f"Dask scheduler '{address}' cannot be reached: {error}; start it, or check the address") from error
    with client:
        workers = len(client.scheduler_info()["workers"])
        if not workers:
            raise DeviceError(f"Dask scheduler '{address}' has no workers; start some with: dask worker {address}")
        groups = {}
        for group in _groups(todo, workers):
            job: dict[str, Any] = {
                "cells": [{**plain_cell(cell), "name": _absolute(cell.entry.name)} for cell, _ in group],
                "keys": [key for _, key in group],
                "options": asdict(options),
                "caps": asdict(caps),
            }
            # Keys that Dask makes itself would take two equal jobs of two runs for one.
            groups[client.submit(run_job, job, pure=False, retries=1)] = group
        for future in completed(list(groups)):  # type: ignore[no-untyped-call]  # likewise
            if future.status == "finished":
                labels = {key: cell.entry.label for cell, key in groups[future]}
                results = (from_dict(CellResult, result) for result in future.result())
                yield from (replace(result, model=labels[result.key]) for result in results)
            else:
                reason = f"{type(future.exception()).__name__}: {future.exception()}"
                yield from (failed(cell, key, "cluster", "Cluster", reason[:500]) for cell, key in groups[future])
