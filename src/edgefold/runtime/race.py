"""Times several model files of one format against each other in one process: ``python -I race.py JOB.json``.

All files are loaded, and they take turns A B C C B A, so that whatever drifts meets them alike. This file lies beside
``worker.py``, from which it takes the runtimes, and keeps to the same rules: the standard library, numpy, the one runtime that
the job names, and the syntax of Python 3.9. It is sent to boards together with it.

The job is one JSON object; its paths are relative to its own folder::

    {"mode": "race", "format": "onnx", "models": ["a.onnx", "b.onnx"], "inputs": [["input_0.npy"], ["input_0.npy"]],
     "threads": 1, "cores": [], "blocks": 6, "turn_s": 0.01, "max_s": 10.0, "limit_s": 70.0}

``inputs`` has one list a model. A block is a turn of each model in order and then one in reverse order; the next block begins one
model later, so that the places at the ends, where a model follows itself, go round. A turn is as many runs as fit into
``turn_s``, at least three, after some that do not count. The answer has ``turns_ns``: for each model the median run of each turn.
With one thread the clock is the CPU time of this process, which is what the wall clock shows on an idle core; with more it is
the wall clock. After ``max_s`` no further block begins, but two are always done.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RUNS_A_TURN = 3
WARMUP_RUNS, WARMUP_S = 5, 0.05
MIN_BLOCKS = 2


def load_worker() -> Any:
    """The module beside this file; an isolated interpreter does not look there."""
    spec = importlib.util.spec_from_file_location("edgefold_worker", Path(__file__).resolve().with_name("worker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Contestant:
    """One loaded model with its input."""

    def __init__(self, worker: Any, form: str, path: Path, arrays: list[Any], threads: int) -> None:
        self.model = worker.MODELS[form]()
        self.model.load(str(path), threads)
        worker.check_inputs(self.model.specs()[0], arrays, form == "executorch")
        self.inputs = [np.ascontiguousarray(array[0]) for array in arrays]
        self.turns: list[float] = []
        self.settle: Callable[[Any, list[Any]], None] = worker.part("worker_timing").settle

    def turn(self, clock: Callable[[], int], least: int, seconds: float) -> list[int]:
        """The times of a row of runs."""
        samples: list[int] = []
        total = 0
        while len(samples) < least or total < seconds * 1e9:
            # Bound again before each run: a runtime may plan other data into the input's memory.
            self.model.bind(self.inputs)
            start = clock()
            self.model.invoke()
            samples.append(max(1, clock() - start))
            total += samples[-1]
        return samples

    def take_turn(self, clock: Callable[[], int], seconds: float) -> None:
        """One turn, once the caches have settled."""
        self.settle(self.model, self.inputs)
        self.turns.append(float(np.median(self.turn(clock, RUNS_A_TURN, seconds))))


def race(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Does one job."""
    if job.get("limit_s"):
        # Ends this process also when whoever asked is gone, and while a runtime hangs in C.
        signal.setitimer(signal.ITIMER_REAL, job["limit_s"])
    threads = int(job.get("threads", 1))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    worker = load_worker()
    worker.part("worker_cores").pin(job.get("cores", []))
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    lanes = []
    for model, names in zip(job["models"], job["inputs"]):  # noqa: B905 - zip's strict came with Python 3.10
        arrays = [np.load(folder / name, allow_pickle=False) for name in names]
        lanes.append(Contestant(worker, job["format"], folder / model, arrays, threads))
    for lane in lanes:
        lane.turn(clock, WARMUP_RUNS, WARMUP_S)
    gc.collect()
    gc.disable()
    start, blocks = time.perf_counter(), 0
    while blocks < job["blocks"] and (blocks < MIN_BLOCKS or time.perf_counter() - start < job["max_s"]):
        first = blocks % len(lanes)
        order = lanes[first:] + lanes[:first]
        for lane in [*order, *reversed(order)]:
            lane.take_turn(clock, job["turn_s"])
        blocks += 1
    gc.enable()
    return {
        "mode": "race",
        "runtime": lanes[0].model.runtime,
        "turns_ns": [lane.turns for lane in lanes],
    }


def main(argv: list[str]) -> int:
    """Answers one job as the worker does; 0 when it was done."""
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        job = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
        sys.path.extend(path for path in job.get("sys_path", []) if path not in sys.path)
        result = dict(race(job, Path(argv[1]).resolve().parent), ok=True)
    except Exception as error:
        result = dict(load_worker().failure(error))
    answer.write(json.dumps(dict(result, edgefold=1)) + "\n")
    answer.flush()
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
