"""Several devices at the same time, on each its artifacts one after the other.

A device that drops out is tried again; when it stays away, that is its result, and the others finish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgefold.artifact import Artifact
from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.errors import DeviceError, EdgefoldError
from edgefold.results import Measurement

ATTEMPTS = 2
Open = Callable[[str], Runner]


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """What one device gave. ``error`` is empty when every artifact was measured; what was measured before it stays."""

    device: str
    measurements: tuple[Measurement, ...]
    error: str = ""
    attempts: int = 1


def bench_devices(
    artifacts: Sequence[Artifact | Path | str],
    devices: Sequence[str],
    options: BenchOptions | None = None,
    *,
    inputs: Sequence[NDArray[Any]] | None = None,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    open_device: Open | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[DeviceResult]:
    """Every artifact on every device.

    Raises:
        InputError: an artifact, the inputs or the options cannot be used; what is wrong with a device is in its result.
    """
    options = options or BenchOptions()
    cases = [make_case(artifact, seed=options.seed, inputs=inputs) for artifact in artifacts]
    opening: Open = open_device or (lambda device: open_runner(device, ssh_config=ssh_config))
    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        return list(pool.map(lambda device: _on_device(device, cases, options, opening, worker, progress), devices))


def _on_device(
    device: str, cases: Sequence[Case], options: BenchOptions, opening: Open, worker: Worker, progress: Callable[[], None]
) -> DeviceResult:
    done: list[Measurement] = []
    error = ""
    attempt = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with opening(device) as runner:
                idle, launchers = runner.info(), Launchers(runner, worker)
                # An artifact that was measured before the device dropped out is not measured again.
                for case in cases[len(done) :]:
                    done.append(bench_case(case, runner, options, launchers, idle=idle, progress=progress))
            return DeviceResult(device, tuple(done), attempts=attempt)
        except DeviceError as failure:
            error = str(failure)
        except EdgefoldError as failure:
            # The artifact or the runtime failed: another attempt would fail in the same way.
            error = str(failure)
            break
    return DeviceResult(device, tuple(done), error, attempt)
