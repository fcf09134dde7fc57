"""Runs of a matrix: results are kept, failures stay where they are, caps hold, here and on a cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefold.artifact import Format, Precision
from edgefold.errors import DeviceError, OutputError, UsageError
from edgefold.matrix.cells import FORKS, Caps, Cell, CellOptions, CellResult, Entry, cell_key, cells_of, failed
from edgefold.matrix.matrix import Matrix, run_matrix
from edgefold.matrix.supervise import Stop, run_cells
from edgefold.models.recipe import checkpoint_names, load_recipe
from edgefold.results import from_dict

MODELS = Path(__file__).with_name("models.py")
FEW = CellOptions(samples=2, parity_samples=2)


def _entry(name: str, **kwargs: object) -> Entry:
    return Entry(f"{MODELS}:{name}", kwargs)


def _quick(cells: list[Cell], keys: list[str], *_: object) -> Iterator[CellResult]:
    """Stands in for the processes: the models called ``bad`` fail, the others pass."""
    for cell, key in zip(cells, keys, strict=True):
        result = failed(cell, key, "load", "ModelError", "is bad")
        yield result if cell.entry.name == "bad" else replace(result, passed=True, stage="", error="", message="")


def test_results_are_kept_and_failures_tried_again_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefold.matrix.matrix.run_cells", _quick)
    arguments = ([Entry("good"), Entry("bad")], [Format.ONNX, Format.TFLITE], [Precision.FP32], tmp_path / "out", FEW)
    seen: list[CellResult] = []
    first = run_matrix(*arguments, jobs=2, progress=seen.append)
    assert [cell.passed for cell in first.cells] == [True, True, False, False]
    assert {result.key for result in seen} == {cell.key for cell in first.cells}
    assert (len(seen), first.cached) == (4, 0)
    again = run_matrix(*arguments)
    assert (again.cells, again.cached) == (first.cells, 4)
    retried = run_matrix(*arguments, retry=True)
    assert retried.cached == 2
    kept = from_dict(Matrix, json.loads((tmp_path / "out" / "matrix.json").read_text()))
    assert kept == retried
    assert "2 of 4 cells pass" in (tmp_path / "out" / "matrix.html").read_text()
    (tmp_path / "out" / "cells" / f"{first.cells[0].key}.json").write_text("{")  # damaged: computed anew
    assert run_matrix(*arguments).cached == 3


def test_a_fault_in_a_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[CellResult]:
        raise OSError("no more processes")

    monkeypatch.setattr("edgefold.matrix.matrix.run_cells", broken)
    with pytest.raises(OSError, match="no more processes"):
        run_matrix([Entry("good")], [Format.ONNX], [Precision.FP32], tmp_path)


def test_a_model_is_loaded_once_for_all_its_cells(tmp_path: Path) -> None:
    made = tmp_path / "made.txt"
    entries = [_entry("counted", path=str(made))]
    good, quantized = run_matrix(entries, [Format.ONNX], [Precision.FP32, Precision.INT8], tmp_path / "out", FEW).cells
    assert good.passed
    assert quantized.passed
    assert good.max_relative_error is not None
    assert good.max_relative_error < 1e-5
    assert good.size_bytes
    assert good.peak_rss_bytes > 10**7
    assert (quantized.random_calibration, good.random_calibration) == (True, False)
    assert quantized.quantization_db is not None
    assert made.read_text() == "made\n"


def test_a_cell_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    entries = [_entry("crashes"), _entry("hungry"), _entry("small")]
    found = run_matrix(
        entries, [Format.ONNX], [Precision.FP32], tmp_path, FEW, Caps(time_s=120, memory_bytes=3 * 10**9), jobs=2
    ).cells
    crashed, hungry, small = found
    assert (crashed.stage, crashed.error) == ("load", "Crash")
    assert "exit code 7" in crashed.message
    assert (hungry.stage, hungry.error) == ("load", "Memory")
    assert small.passed


# Other tests may have loaded JAX here, which warns of forks; the parent of real cells never loads it.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.skipif(not FORKS, reason="cells are forked on Linux only")
def test_each_cell_has_its_own_process() -> None:
    """What one cell held does not count for the next, and one that dies is told."""
    pytest.importorskip("resource")
    from edgefold.matrix.worker import _limit_memory, _peak_bytes, in_own_process

    peaks = multiprocessing.get_context("spawn").Array("q", 2)

    def cell(index: int, size: int) -> None:
        held = b"1" * size
        peaks[index] = _peak_bytes() + 0 * len(held)

    large, small = in_own_process(lambda: cell(0, 100 * 10**6)), in_own_process(lambda: cell(1, 1))
    assert (large[0], small[0]) == (0, 0)
    assert peaks[0] - peaks[1] > 75 * 10**6
    assert large[1] - small[1] > 75 * 10**6
    assert in_own_process(lambda: os._exit(7))[0] == 7
    assert in_own_process(lambda: os.kill(os.getpid(), signal.SIGKILL))[0] == -signal.SIGKILL

    def limited() -> None:
        _limit_memory(10**9)
        try:
            np.empty(2 * 10**9, np.uint8)  # asks for memory and does not touch it
        except MemoryError:
            os._exit(3)

    assert in_own_process(limited)[0] == 3
    assert np.empty(2 * 10**9, np.uint8).nbytes == 2 * 10**9  # the limit was that cell's own


@pytest.mark.skipif(not FORKS, reason="cells are forked on Linux only")
@pytest.mark.slow
def test_a_cells_process_that_dies_leaves_its_model_to_the_next(tmp_path: Path) -> None:
    made = tmp_path / "made.txt"
    entries = [_entry("dies_once", path=str(made))]
    first, second = run_matrix(entries, [Format.ONNX], [Precision.FP32, Precision.FP16], tmp_path / "out", FEW).cells
    assert (first.error, first.stage) == ("Crash", "calibrate")
    assert "exit code 9" in first.message
    assert second.passed
    assert made.read_text() == "made\n"


def test_a_cell_that_hangs_is_ended(tmp_path: Path) -> None:
    cells = cells_of([_entry("hangs")], [Format.ONNX], [Precision.FP32])
    (found,) = run_cells(cells, ["key"], FEW, Caps(time_s=1.0))
    assert (found.stage, found.error) == ("load", "Timeout")
    assert "took longer than 1 s" in found.message


def test_a_cell_that_failed_for_its_cap_is_computed_anew_with_a_larger_one(tmp_path: Path) -> None:
    args = ([_entry("hangs")], [Format.ONNX], [Precision.FP32], tmp_path, FEW)
    first = run_matrix(*args, Caps(time_s=1.0))
    assert (first.cells[0].error, first.cells[0].cap) == ("Timeout", 1.0)
    assert run_matrix(*args, Caps(time_s=1.0)).cached == 1
    larger = run_matrix(*args, Caps(time_s=1.5))
    assert larger.cached == 0
    assert "longer than 1.5 s" in larger.cells[0].message


def test_only_a_process_that_was_near_its_limit_lacked_memory() -> None:
    cells = cells_of([_entry("killed")], [Format.ONNX], [Precision.FP32])
    (found,) = run_cells(cells, ["key"], FEW, Caps(memory_bytes=10**11))
    assert (found.error, found.stage) == ("Crash", "load")
    assert "--retry" in found.message
    assert found.peak_rss_bytes > 8 * 10**8
    little_more = int(1.15 * found.peak_rss_bytes)  # libraries ask for more than they touch
    (near,) = run_cells(cells, ["key"], FEW, Caps(memory_bytes=little_more))
    assert (near.error, near.cap) == ("Memory", little_more)


def test_a_model_that_raises_says_so_in_its_cell(tmp_path: Path) -> None:
    (found,) = run_matrix([_entry("leaves")], [Format.ONNX], [Precision.FP32], tmp_path, FEW).cells
    assert (found.error, found.stage) == ("ModelError", "load")
    assert "models.py:leaves' failed: SystemExit: 5" in found.message


def test_a_stopped_matrix_starts_nothing(tmp_path: Path) -> None:
    stop = Stop()
    stop.now()
    cells = cells_of([_entry("small")], [Format.ONNX], [Precision.FP32])
    assert list(run_cells(cells, ["key"], FEW, Caps(), stop)) == []


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cells"):
        run_matrix([], [Format.ONNX], [Precision.FP32], tmp_path)
    with pytest.raises(UsageError, match="twice"):
        run_matrix([_entry("small")] * 2, [Format.ONNX], [Precision.FP32], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run_matrix([_entry("small")], [Format.ONNX], [Precision.FP32], tmp_path / "file")
    with pytest.raises(DeviceError, match="cannot be reached"):
        run_matrix([_entry("small")], [Format.ONNX], [Precision.FP32], tmp_path / "x", scheduler="no-such-scheme://1")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a Dask scheduler with two workers, each a process of its own."""
    distributed = pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    base = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    quiet = ["--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)]
    commands = [[*base, "--host", "127.0.0.1", "--port", "0"], [*worker, *quiet], [*worker, *quiet]]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    try:
        with distributed.Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            yield client.scheduler.address
    finally:
        for process in processes:
            process.kill()  # a worker that is asked to end waits for its scheduler
        for process in processes:
            process.wait()


@pytest.mark.filterwarnings("ignore::ResourceWarning:distributed")  # it leaves a socket to the garbage collector
def test_a_matrix_on_a_cluster(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers run in another folder, so a file that is named relative to this one is named as a whole to them."""
    monkeypatch.chdir(MODELS.parent)
    entries = [Entry(f"{MODELS.name}:small"), _entry("crashes")]
    found = run_matrix(entries, [Format.ONNX], [Precision.FP32], tmp_path / "out", FEW, scheduler=scheduler)
    assert [(cell.passed, cell.error) for cell in found.cells] == [(True, ""), (False, "Crash")]
    key = cell_key(cells_of(entries, [Format.ONNX], [Precision.FP32])[0], FEW)
    assert found.cells[0].key == key
    assert found.cells[0].model == f"{MODELS.name}:small"
    assert (tmp_path / "out" / "cells" / f"{key}.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", checkpoint_names())
def test_every_checkpoint_ships_to_every_format(name: str, tmp_path: Path) -> None:
    found = run_matrix([Entry(name)], list(Format), [Precision.FP32, Precision.INT8], tmp_path, CellOptions(samples=200)).cells
    assert [cell.message for cell in found if not cell.passed] == []
    assert len(found) == 6
    recipe = load_recipe(name)
    for cell in found:
        assert not cell.random_calibration
        assert cell.accuracy == pytest.approx(recipe.accuracy, abs=0.025)  # of 1,000 of the 10,000 images
