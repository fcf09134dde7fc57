"""How a latency figure is made: fresh processes that warm up until their times settle, then steady state.

One process gives load time, first inference and steady-state samples. Memory is a pass of its own, since looking at it disturbs
the times. The device's state is read before, after, and while one more process works that is not measured, for the same reason.
Neither pass counts for `BenchOptions.max_secs`. Nothing here knows how the device is reached.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.device_bench import stats
from edgefold.device_bench.cases import BENCH_JOB, GRACE_S, MEMORY_JOB, WATCH_JOB, Case, write_case
from edgefold.device_bench.codes import Evidence, codes_of
from edgefold.device_bench.gate import ThermalGate
from edgefold.device_bench.launch import Launcher
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.parity import compare_outputs, is_right
from edgefold.device_bench.runners.base import RemotePath, Runner
from edgefold.device_bench.watching import while_it_works
from edgefold.errors import UsageError
from edgefold.results import DeviceInfo, Measurement, Run
from edgefold.runtime.protocol import read_answer
from edgefold.runtime.session import from_file

Array = NDArray[Any]
# Starting a process, loading a runtime and the model, and a slow connection, on top of the worker's own budget.
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process needs, in bytes; ``None`` is what nothing tells."""

    peak_rss_bytes: int | None = None
    base_rss_bytes: int | None = None
    pss_bytes: int | None = None


@dataclass
class PlacedCase:
    """A case on a device, ready to be run in fresh processes."""

    case: Case
    runner: Runner
    launcher: Launcher
    options: BenchOptions
    folder: RemotePath

    def __post_init__(self) -> None:
        self.runtime = ""
        self.fallback_ops: tuple[str, ...] = ()
        self.output_names: list[str] = []

    def process(self) -> Run:
        """One fresh process."""
        return self.take(self._ask(BENCH_JOB))

    def process_with(self, other: PlacedCase) -> tuple[tuple[Run, Run], float]:
        """One fresh process that times this case and another in turns: the runs of both, and how long the other takes over how
        long this one does."""
        argv = self.launcher.argv(self.folder, f"{self.folder}/{BENCH_JOB}", f"{other.folder}/{BENCH_JOB}")
        answer = self._answer(argv, 2)
        mine, others = answer["sides"]
        turns = [stats.turn_medians(side["samples_ns"], side["turns"]) for side in (mine, others)]
        return (self.take(mine), other.take(others)), stats.turns_ratio(turns[1], turns[0])

    def take(self, answer: dict[str, Any]) -> Run:
        """The run in a worker's answer; what it tells of the runtime is kept."""
        self.runtime = answer["runtime"]
        self.fallback_ops = tuple(answer.get("fallback_ops", self.case.fallback_ops))
        self.output_names = list(answer["outputs"])
        return Run(
            samples_ns=tuple(answer["samples_ns"]),
            load_ns=answer["load_ns"],
            first_ns=answer["first_ns"],
            warmup_ns=tuple(answer["warmup_ns"]),
            converged=answer["converged"],
        )

    def watch(self) -> DeviceInfo:
        """The device while a process works that is not measured, with the cores that it could run on."""
        answer, state = while_it_works(self.runner, lambda: self._ask(WATCH_JOB))
        cores = answer.get("affinity")
        return state if cores is None else replace(state, affinity=tuple(cores))

    def memory(self) -> Memory:
        """Of a process that only loads and runs."""
        answer = self._ask(MEMORY_JOB)
        # 0 is a kernel that does not tell.
        peak, base, pss = (answer.get(key) or None for key in ("peak_rss_bytes", "base_rss_bytes", "pss_bytes"))
        return Memory(peak, base, pss)

    def outputs(self) -> tuple[Array, ...]:
        """What the last process computed, in torch's layout."""
        arrays = []
        with tempfile.TemporaryDirectory(prefix="edgefold-") as local:
            for name in self.output_names:
                self.runner.pull(f"{self.folder}/{name}", Path(local) / name)
                arrays.append(np.load(Path(local) / name, allow_pickle=False))
        if len(arrays) != len(self.case.output_specs):
            return ()
        return tuple(from_file(spec, array) for spec, array in zip(self.case.output_specs, arrays, strict=True))

    def _ask(self, job: str) -> dict[str, Any]:
        return self._answer(self.launcher.argv(self.folder, job), 1)

    def _answer(self, argv: list[str], models: int) -> dict[str, Any]:
        timeout_s = models * (self.options.max_secs / self.options.processes + GRACE_S) + START_S
        done = self.runner.run(argv, timeout_s=timeout_s)
        return read_answer(done.returncode, done.stdout, done.stderr, model=self.case.name, format=self.case.format)


@contextmanager
def placed(case: Case, runner: Runner, launcher: Launcher, options: BenchOptions) -> Iterator[PlacedCase]:
    """Puts a case on the device and takes it away again.

    Raises:
        UsageError: the device lacks a core of the options.
        DeviceError: the device cannot be reached.
    """
    if options.cores:
        _check_cores(options, runner.info())
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        folder = Path(temporary)
        write_case(case, folder, options, launcher.job())
        for extra in launcher.files():
            (folder / extra.name).symlink_to(extra)
        remote = runner.push(folder)
    try:
        yield PlacedCase(case, runner, launcher, options, remote)
    finally:
        runner.remove(remote)


def in_time(options: BenchOptions, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """The numbers of the processes: of one in any case, of the others until ``options.max_secs`` are over."""
    end_s = clock() + options.max_secs
    for number in range(options.processes):
        if number and clock() >= end_s:
            return
        yield number


def measure(
    place: PlacedCase,
    *,
    gate: ThermalGate | None = None,
    reference: Sequence[Array] | None = None,
    progress: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """One artifact in one configuration: ``options.processes`` processes, or fewer where ``options.max_secs`` are over before.

    ``gate`` is that of the cases before on the same device; ``reference`` what the model must compute for the case's inputs, in
    torch's layout; ``progress`` is called after each process.

    Raises:
        RuntimeFailure: the runtime crashed or refused the file.
        DeviceError: the device cannot be reached any more.
    """
    options, runner = place.options, place.runner
    before, gate_reached = (gate or ThermalGate(runner, options)).cool_down()
    runs: list[Run] = []
    for _ in in_time(options, clock):
        runs.append(place.process())
        progress()
    parity = None if reference is None else compare_outputs(place.case.output_specs, place.outputs(), reference)
    states = (before, place.watch(), runner.info())
    memory = place.memory()
    return assemble(place, tuple(runs), states, memory, gate_reached=gate_reached, parity=parity)


def assemble(
    place: PlacedCase,
    runs: tuple[Run, ...],
    states: tuple[DeviceInfo, DeviceInfo, DeviceInfo],
    memory: Memory,
    *,
    gate_reached: bool,
    parity: tuple[Any, ...] | None,
) -> Measurement:
    """The measurement that these runs make. ``parity`` is ``None`` without a reference, empty where the shapes differ."""
    options, case = place.options, place.case
    samples = [run.samples_ns for run in runs]
    median = stats.percentile(samples, 50, seed=options.seed)
    assert median is not None
    noise = stats.aa_noise(samples, seed=options.seed)
    matched = None if parity is None else bool(parity) and all(is_right(each, case.precision) for each in parity)
    evidence = Evidence(runs, noise, states, options, gate_reached, matched, place.fallback_ops)
    return Measurement(
        artifact=case.name,
        artifact_sha256=case.sha256,
        format=case.format,
        runtime=place.runtime,
        threads=options.threads,
        runs=runs,
        device=states[1],
        codes=codes_of(evidence),
        interval_ns=(median.low, median.high),
        # JSON has no infinity; with fewer than four processes nothing is known, and FEW_SAMPLES says so.
        noise=noise if math.isfinite(noise) else 1.0,
        device_before=states[0],
        device_after=states[2],
        cores=options.cores,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        precision=case.precision,
        p90_ns=stats.percentile(samples, 90, seed=options.seed),
        p99_ns=stats.percentile(samples, 99, seed=options.seed),
        outliers=sum(stats.outliers(each) for each in samples),
        parity=parity or (),
        fallback_ops=place.fallback_ops,
        peak_rss_bytes=memory.peak_rss_bytes,
        base_rss_bytes=memory.base_rss_bytes,
        pss_bytes=memory.pss_bytes,
    )


def _check_cores(options: BenchOptions, info: DeviceInfo) -> None:
    """Raises UsageError where the device has not all the cores of the options; one that tells none is believed."""
    there = [core.index for core in info.cores]
    missing = [str(core) for core in options.core_list() if core not in there]
    if there and missing:
        raise UsageError(
            f"cores '{', '.join(missing)}' cannot be used: device '{info.url}' has cores {', '.join(map(str, there))}; "
            "choose others, or none"
        )
