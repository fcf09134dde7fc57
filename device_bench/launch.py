"""What answers a job on a device: this interpreter, a Python that is installed there, or the native runner."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

from edgefold.artifact import Format
from edgefold.device_bench.native_bundle import NativeLauncher, load_bundle
from edgefold.device_bench.runners.base import RemotePath, Runner
from edgefold.errors import DeviceError
from edgefold.runtime.protocol import INSTALLED, RACE, WORKER, WORKER_FILES, python_path, worker_argv

Worker = Literal["auto", "python", "native"]

PROBE_TIMEOUT_S = 330.0  # three imports, each with a limit of its own
USABLE = "ok"
# What to install.
MODULES = {
    Format.ONNX: ("onnxruntime",),
    Format.TFLITE: ("ai_edge_litert", "tflite_runtime"),
    Format.EXECUTORCH: ("executorch with torch",),
}


@dataclass(frozen=True, slots=True)
class Racer:
    """Times several models in turns in one process: `edgefold.runtime.race` under a Python, ``sent`` along or as installed."""

    python: str
    sent: bool

    def files(self) -> list[Path]:
        """What must lie in the folder of a race: the program and the worker that it builds upon."""
        return [RACE, *WORKER_FILES] if self.sent else []

    def argv(self, folder: RemotePath, job: str) -> list[str]:
        """The command; the job is a name in the folder."""
        program = f"{folder}/{RACE.name}" if self.sent else str(RACE)
        return [self.python, "-I", program, f"{folder}/{job}"]


class Launcher(Protocol):
    """Knows the command that answers a job in a pushed folder."""

    @property
    def racer(self) -> Racer | None:
        """What times several models in one process; ``None`` where a process holds one at a time."""
        ...

    def files(self) -> list[Path]:
        """What must lie in the folder of each case."""
        ...

    def job(self) -> dict[str, Any]:
        """What must stand in each job."""
        ...

    def argv(self, folder: RemotePath, *jobs: str) -> list[str]:
        """The command; jobs are paths on the device, or names in the folder."""
        ...


class HostLauncher:
    """The worker under this process's own interpreter."""

    def __init__(self) -> None:
        self.racer: Racer | None = Racer(sys.executable, sent=False)

    def files(self) -> list[Path]:
        """Nothing: the worker is run from where it is installed."""
        return []

    def job(self) -> dict[str, Any]:
        """Where this process finds its packages."""
        return {"sys_path": python_path()}

    def argv(self, folder: RemotePath, *jobs: str) -> list[str]:
        """The command."""
        return worker_argv(*paths(folder, jobs))


class PythonLauncher:
    """The worker, sent over, under the device's own Python."""

    def __init__(self, python: str) -> None:
        self._python = python
        self.racer: Racer | None = Racer(python, sent=True)

    def files(self) -> list[Path]:
        """The worker itself."""
        return list(WORKER_FILES)

    def job(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def argv(self, folder: RemotePath, *jobs: str) -> list[str]:
        """The command."""
        return [self._python, "-I", f"{folder}/{WORKER.name}", *paths(folder, jobs)]


class FakeLauncher(PythonLauncher):
    """The same on a device that exists only in memory, whose worker knows one model at a time."""

    def __init__(self, python: str) -> None:
        super().__init__(python)
        self.racer = None


def paths(folder: RemotePath, jobs: Sequence[str]) -> list[str]:
    """Jobs as paths: names lie in the folder."""
    return [job if job.startswith("/") else f"{folder}/{job}" for job in jobs]


def runtimes_of(runner: Runner) -> dict[Format, str]:
    """What the device's Python says of each runtime (see `edgefold.runtime.installed`): ``ok``, or why it cannot be used.

    Empty where there is no Python.
    """
    done = runner.run([runner.python, "-I", "-c", INSTALLED.read_text(encoding="utf-8")], timeout_s=PROBE_TIMEOUT_S)
    lines = re.findall(r"^@runtime (\w+) (.+?)\r?$", done.stdout.decode("utf-8", errors="replace"), re.MULTILINE)
    return {Format(form): said for form, said in lines if form in set(Format)}


def choose_launcher(
    runner: Runner, form: Format, worker: Worker = "auto", runtimes: Callable[[], Mapping[Format, str]] | None = None
) -> Launcher:
    """The best way to answer jobs of a format on a device: its own Python where it has the runtime, else the native runner.

    ``runtimes`` gives what `runtimes_of` says of the device.

    Raises:
        DeviceError: neither is possible; the message says what to do.
    """
    if runner.url == "host":
        return HostLauncher()
    if runner.url == "fake":
        return FakeLauncher(runner.python)
    missing = f"device '{runner.url}' has no Python with numpy and {' or '.join(MODULES[form])}"
    if worker != "native":
        said = (runtimes() if runtimes else runtimes_of(runner)).get(form, "no Python")
        if said == USABLE:
            return PythonLauncher(runner.python)
        missing += f" ({said})"
    if worker == "python":
        raise DeviceError(f"{missing}; install one of them there, or use the native runner")
    bundle = load_bundle()
    if bundle is None:
        raise DeviceError(f"{missing}, and no native runner was built; build one with: edgefold runner build")
    machine = runner.info().machine
    if machine != bundle.machine:
        raise DeviceError(
            f"device '{runner.url}' is {machine or 'of an unknown kind'}, the native runner is for {bundle.machine}; "
            "install Python with a runtime there"
        )
    return NativeLauncher(runner, bundle, form)


class Launchers:
    """The launchers of one open runner; each is prepared once."""

    def __init__(self, runner: Runner, worker: Worker = "auto") -> None:
        self._runner, self._worker = runner, worker
        self._made: dict[Format, Launcher] = {}
        # Asked once: importing everything takes a slow board many seconds.
        self._runtimes = cache(partial(runtimes_of, runner))

    def of(self, form: Format) -> Launcher:
        """The launcher for a format; see `choose_launcher`."""
        if form not in self._made:
            self._made[form] = choose_launcher(self._runner, form, self._worker, self._runtimes)
        return self._made[form]
