"""Latency over a long time under load: does the device keep its speed, or does heat slow it down?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from edgefold.artifact import Artifact
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.codes import in_order, state_codes
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.method import placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.base import Runner
from edgefold.results import Code

# Of the start's speed; below it the device does not keep what it shows in a short measurement.
KEPT_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class SustainedPoint:
    """One process of the run: its start in seconds, its median, and the device's state while one more works, not measured."""

    at_s: float
    median_ns: float
    temperature_c: float | None
    frequency_khz: int | None  # the highest of all cores
    thermal_status: int | None


@dataclass(frozen=True, slots=True)
class SustainedResult:
    """The curve of one artifact. ``kept_share`` is the speed of the last fifth over that of the first fifth.

    ``codes`` are those of the device's states over the whole run, with THROTTLED also where the speed was not kept. Outputs are
    not looked at, as OUTPUT_UNCHECKED says.
    """

    artifact: str
    artifact_sha256: str
    device: str
    runtime: str
    threads: int
    points: tuple[SustainedPoint, ...]
    kept_share: float
    codes: tuple[Code, ...] = ()

    @property
    def throttled(self) -> bool:
        """Whether the device slowed down."""
        return self.kept_share < KEPT_SHARE


def sustained(
    artifact: Artifact | Path | str,
    device: str = "host",
    minutes: float = 10.0,
    options: BenchOptions | None = None,
    *,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    runner: Runner | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SustainedResult:
    """Runs an artifact without a pause, process after process, and notes speed and state of each.

    Raises:
        InputError: the file, the options or the device's name cannot be used.
        RuntimeFailure: the runtime crashed or refused the file.
        DeviceError: the device cannot be reached.
    """
    options = options or BenchOptions()
    # A process works for ten seconds, or a tenth of the time if that is less.
    seconds = min(10.0, minutes * 6)
    options = replace(options, processes=1, min_time_s=seconds, max_secs=3 * seconds + 60)
    case = make_case(artifact, seed=options.seed)
    points: list[SustainedPoint] = []
    converged = True
    with runner or open_runner(device, ssh_config=ssh_config) as reached:
        states = [reached.info()]
        launcher = Launchers(reached, worker).of(case.format)
        with placed(case, reached, launcher, options) as place:
            start = clock()
            while not points or clock() - start < 60 * minutes:
                at_s = clock() - start
                run = place.process()
                converged = converged and run.converged
                state = place.watch()  # between two processes the clocks are those of an idle device
                states.append(state)
                frequencies = [core.current_khz for core in state.cores if core.current_khz]
                points.append(
                    SustainedPoint(
                        at_s, median(run.samples_ns), state.temperature_c, max(frequencies, default=None), state.thermal_status
                    )
                )
            runtime = place.runtime
    kept, seen = _kept(points), state_codes(states)
    throttled = seen[Code.THROTTLED] or kept < KEPT_SHARE
    more = {Code.THROTTLED: throttled, Code.NOT_CONVERGED: not converged, Code.OUTPUT_UNCHECKED: True}
    codes = in_order({**seen, **more})
    return SustainedResult(case.name, case.sha256, reached.url, runtime, options.threads, tuple(points), kept, codes)


def _kept(points: list[SustainedPoint]) -> float:
    """Speed at the end over speed at the start, each over a fifth of the points."""
    part = max(1, len(points) // 5)
    first, last = (median(point.median_ns for point in some) for some in (points[:part], points[-part:]))
    return first / last
