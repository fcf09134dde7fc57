"""A device that exists only in memory: it answers jobs as a worker does, with times drawn from a seeded distribution.

It ships with the package so that tests, and users who write a runner or read the results, can have any device state and any
failure.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgefold.device_bench.cases import WATCH_JOB
from edgefold.device_bench.runners.base import Completed, RemotePath, files_below, unique_name
from edgefold.errors import DeviceError
from edgefold.results import CoreInfo, DeviceInfo

QUIET_DEVICE = DeviceInfo(
    url="fake",
    machine="aarch64",
    system="Linux",
    cpu="4x Cortex-A76",
    features=("asimd", "asimddp", "asimdhp"),
    cores=tuple(CoreInfo(index, "performance", 1_000_000, 2_400_000, 2_400_000) for index in range(4)),
    memory_bytes=4 << 30,
    temperature_c=35.0,
    load_1min=0.0,
    runtimes={"onnx": "onnxruntime 0", "tflite": "ai-edge-litert 0", "executorch": "executorch 0"},
)


@dataclass
class FakeDevice:
    """What the device does.

    ``latency_ns`` gives the mean of a process from the model's file name and the number of the process; the samples spread
    around it by ``spread`` (a share, log-normal). ``states`` are what ``info`` answers, one after the other, the last one for
    ever. ``outputs`` are what every run computes. ``answer`` may change a worker's answer or raise; ``converged`` is said of
    every warm-up.
    """

    latency_ns: Callable[[str, int], float] = lambda model, process: 1e6
    spread: float = 0.01
    states: Sequence[DeviceInfo] = (QUIET_DEVICE,)
    outputs: Sequence[NDArray[Any]] = ()
    answer: Callable[[dict[str, Any]], dict[str, Any] | Completed] = lambda answer: answer
    converged: bool = True
    samples: int = 64
    fallback_ops: tuple[str, ...] = ()
    seed: int = 0
    pushed: dict[RemotePath, dict[str, bytes]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)  # "bench tiny.onnx" for each process, in order


class FakeRunner:
    """A runner for a `FakeDevice`; it never starts a process."""

    url = "fake"
    python = "python3"
    kept: RemotePath | None = None

    def __init__(self, device: FakeDevice | None = None) -> None:
        self.device = device or FakeDevice()
        self._random = random.Random(self.device.seed)
        self._states = iter(self.device.states)
        self._state = self.device.states[0]
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        self.device.pushed.clear()

    def info(self) -> DeviceInfo:
        """The next of the device's states."""
        self._state = next(self._states, self._state)
        return self._state

    def push(self, local: Path) -> RemotePath:
        """Keeps the bytes of a file or folder."""
        if not self._open:
            raise DeviceError("the fake runner is closed; use it inside its 'with' block")
        remote = f"/fake/{unique_name('case')}"
        self.device.pushed[remote] = {name: path.read_bytes() for name, path in files_below(local)}
        return remote

    def pull(self, remote: RemotePath, local: Path) -> None:
        """Gives one file back."""
        folder, _, name = remote.rpartition("/")
        try:
            local.write_bytes(self.device.pushed[folder][name])
        except KeyError:
            raise DeviceError(f"'{remote}' does not exist on the fake device; push or run something first") from None

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Answers the job that the last argument names."""
        folder, _, name = argv[-1].rpartition("/")
        job = json.loads(self.device.pushed[folder][name])
        if name == WATCH_JOB:
            job["mode"] = "watch"  # no process that counts
        answer = self._answer(job)
        for position, array in enumerate(self.device.outputs):
            self._save(folder, f"output_{position}.npy", array)
            answer["outputs"].append(f"output_{position}.npy")
        result = self.device.answer(answer)
        if isinstance(result, Completed):
            return result
        return Completed(0 if result["ok"] else 1, json.dumps(result).encode() + b"\n", b"")

    def remove(self, remote: RemotePath) -> None:
        """Forgets what `push` kept."""
        self.device.pushed.pop(remote, None)

    def _save(self, folder: RemotePath, name: str, array: NDArray[Any]) -> None:
        import io

        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.device.pushed[folder][name] = buffer.getvalue()

    def _answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """What a worker says to the job."""
        model = job["artifact"]
        process = sum(1 for entry in self.device.jobs if entry == f"bench {model}")
        self.device.jobs.append(f"{job['mode']} {model}")
        answer = {"edgefold": 1, "ok": True, "mode": job["mode"], "runtime": "fake 1.0", "load_ns": 5_000_000, "outputs": []}
        if job["mode"] == "memory":
            return {**answer, "peak_rss_bytes": 64 << 20, "base_rss_bytes": 48 << 20, "pss_bytes": 60 << 20}
        mean = self.device.latency_ns(model, process)
        times = [max(1, int(mean * self._random.lognormvariate(0, self.device.spread))) for _ in range(self.device.samples)]
        more = {"samples_ns": times, "warmup_ns": times[:40], "first_ns": 2 * times[0], "converged": self.device.converged}
        return {**answer, **more, "fallback_ops": list(self.device.fallback_ops)}
