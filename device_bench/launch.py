"""What answers a job on a device: this interpreter, a Python that is installed there, or the native runner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgefold.artifact import Format
from edgefold.device_bench.native_bundle import NativeLauncher, load_bundle
from edgefold.device_bench.runners.base import RemotePath, Runner
from edgefold.errors import DeviceError
from edgefold.runtime.protocol import RACE, WORKER, WORKER_FILES, python_path, worker_argv

Worker = Literal["auto", "python", "native"]

PROBE_TIMEOUT_S = 120.0
# The modules of which one must be there, as the worker looks for them.
MODULES = {
    Format.ONNX: ("onnxruntime",),
    Format.TFLITE: ("ai_edge_litert", "tflite_runtime"),
    Format.EXECUTORCH: ("executorch",),
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


def has_python(runner: Runner, form: Format) -> bool:
    """Whether the device has Python with numpy and a runtime for the format."""
    names = ", ".join(repr(name) for name in MODULES[form])
    script = (
        "import importlib.util as u, sys; has = lambda name: u.find_spec(name) is not None; "
        f"sys.exit(0 if sys.version_info >= (3, 9) and has('numpy') and any(map(has, ({names},))) else 1)"
    )
    return runner.run([runner.python, "-I", "-c", script], timeout_s=PROBE_TIMEOUT_S).returncode == 0


def choose_launcher(runner: Runner, form: Format, worker: Worker = "auto") -> Launcher:
    """The best way to answer jobs of a format on a device: its own Python where it has the runtime, else the native runner.

    Raises:
        DeviceError: neither is possible; the message says what to do.
    """
    if runner.url == "host":
        return HostLauncher()
    if runner.url == "fake":
        return FakeLauncher(runner.python)
    if worker != "native" and has_python(runner, form):
        return PythonLauncher(runner.python)
    missing = f"device '{runner.url}' has no Python with numpy and {' or '.join(MODULES[form])}"
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

    def of(self, form: Format) -> Launcher:
        """The launcher for a format; see `choose_launcher`."""
        if form not in self._made:
            self._made[form] = choose_launcher(self._runner, form, self._worker)
        return self._made[form]
