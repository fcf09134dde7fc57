"""Several devices at the same time, on each its artifacts one after the other.

A device that drops out is tried again; when it stays away, that is its result, and the others finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgefold.artifact import Artifact
from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.gate import ThermalGate, Wait
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.named import named_devices
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.device_bench.runners.client import stop_clients
from edgefold.errors import DeviceError, EdgefoldError, UsageError
from edgefold.results import Measurement

ATTEMPTS = 2
# A board that restarts its network or a phone that changes its mode needs a moment.
RETRY_PAUSE_S = 5.0
Open = Callable[[str], Runner]


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """What one device gave. ``failure`` is ``None`` when every artifact was measured; what was measured before it stays."""

    device: str
    measurements: tuple[Measurement, ...]
    failure: EdgefoldError | None = None
    attempts: int = 1
    kept: tuple[str, ...] = ()  # folders that were left there, one an attempt

    @property
    def error(self) -> str:
        """The failure in words, or nothing."""
        return "" if self.failure is None else str(self.failure)


def bench_devices(
    artifacts: Sequence[Artifact | Path | str],
    devices: Sequence[str],
    options: BenchOptions | None = None,
    *,
    inputs: Sequence[NDArray[Any]] | None = None,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    open_device: Open | None = None,
    keep: bool = False,
    progress: Callable[[], None] = lambda: None,
    wait: Wait | None = None,
) -> list[DeviceResult]:
    """Every artifact on every device. ``wait`` takes the seconds of a pause.

    Raises:
        InputError: an artifact, the inputs or the options cannot be used, or a device is given twice; what else is wrong with a
            device is in its result.
    """
    _refuse_twice(devices)
    options = options or BenchOptions()
    cases = [make_case(artifact, seed=options.seed, inputs=inputs) for artifact in artifacts]
    opening: Open = open_device or (lambda device: open_runner(device, ssh_config=ssh_config, keep=keep))
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        try:
            each = partial(_on_device, cases, options, opening, worker, progress, stop, wait or stop.wait)
            return list(pool.map(each, devices))
        except BaseException:
            # Ctrl-C comes to this thread alone: the others give up what they do, clean up and end.
            stop.set()
            stop_clients()
            raise


def _refuse_twice(devices: Sequence[str]) -> None:
    """A device that measures two things at once measures neither; two names of one device are one."""
    if len(devices) < 2:
        return
    known = named_devices()
    urls = [known[device].url if device in known else device for device in devices]
    for position, url in enumerate(urls):
        if url in urls[:position]:
            first, second = devices[urls.index(url)], devices[position]
            names = f"'{first}' is" if first == second else f"'{first}' and '{second}' are"
            raise UsageError(f"{names} given as two devices and would be measured at the same time; give each device once")


@contextmanager
def kept_of(runner: Runner, places: list[str]) -> Iterator[Runner]:
    """A runner in its context; notes the folder that it leaves, however it ends."""
    try:
        with runner:
            yield runner
    finally:
        if runner.kept is not None:
            places.append(runner.kept)


def _on_device(
    cases: Sequence[Case],
    options: BenchOptions,
    opening: Open,
    worker: Worker,
    progress: Callable[[], None],
    stop: threading.Event,
    wait: Wait,
    device: str,
) -> DeviceResult:
    done: list[Measurement] = []
    kept: list[str] = []
    error: EdgefoldError | None = None
    attempt = 0

    def go_on() -> None:
        if stop.is_set():
            raise DeviceError(f"device '{device}' was not measured to the end: it was interrupted; run it again")

    def pause(seconds: float) -> None:
        wait(seconds)
        go_on()

    for attempt in range(1, ATTEMPTS + 1):
        try:
            if attempt > 1:
                pause(RETRY_PAUSE_S)
            with kept_of(opening(device), kept) as runner:
                gate, launchers = ThermalGate(runner, options, pause), Launchers(runner, worker)
                # An artifact that was measured before the device dropped out is not measured again.
                for case in cases[len(done) :]:
                    go_on()
                    done.append(bench_case(case, runner, options, launchers, gate=gate, progress=progress))
            return DeviceResult(device, tuple(done), attempts=attempt, kept=tuple(kept))
        except DeviceError as failure:
            error = failure
            if stop.is_set():
                break
        except EdgefoldError as failure:
            # The artifact or the runtime failed: another attempt would fail in the same way.
            error = failure
            break
    return DeviceResult(device, tuple(done), error, attempt, tuple(kept))
