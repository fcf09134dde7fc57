"""Devices that are real in all but their silicon: built once into .rig/, started for the session, stopped after it.

Where the machine forbids it (no root, no namespaces, no registries) these tests skip with the reason; with
EDGEFOLD_REQUIRE_RIGS=1, as in CI, they fail instead.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgefold.device_bench import build_runner
from edgefold.device_bench.native_bundle import load_bundle
from edgefold.errors import ArtifactError, EdgefoldError

HERE = Path(__file__).parent
RIG = Path(os.environ.get("EDGEFOLD_RIG", HERE.parents[1] / ".rig"))
TINY = HERE.parent / "data" / "tiny"
SETUP_S = 900


REQUIRED = os.environ.get("EDGEFOLD_REQUIRE_RIGS", "") not in ("", "0")


def unavailable(reason: str) -> None:
    """Skips with the reason; what skips fails where nothing may (see below)."""
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRED and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason}: no rig test may skip here (EDGEFOLD_REQUIRE_RIGS)"
    return report


def script(name: str, *arguments: str) -> None:
    """Runs one of the rig's scripts; only its end is waited for, since what it starts keeps running."""
    log = RIG / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [str(HERE / name), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=SETUP_S
        )
    if done.returncode:
        unavailable(f"{name} {arguments[0]} failed: {(log.read_text(errors='replace').splitlines() or ['?'])[-1]}")


def packages(*names: str) -> None:
    """Installs the Debian packages that are missing."""
    line = f'source "{HERE}/common.sh"; install_packages "$@"'
    done = subprocess.run(["bash", "-c", line, "bash", *names], capture_output=True, text=True, timeout=SETUP_S)
    if done.returncode:
        unavailable((done.stderr.splitlines() or ["installing packages failed"])[-1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def recorded(step: str, *, builds: bool = False) -> Iterator[None]:
    """Writes into setup.json how long a step of the set-up took: by the clock, and in CPU time of this process and those it
    waited for, which a first download of packages does not lengthen. What was built stays recorded when it is used again."""
    start, used = time.monotonic(), sum(os.times()[:4])
    yield
    taken = {"clock_s": time.monotonic() - start, "cpu_s": sum(os.times()[:4]) - used}
    with locked("setup.lock"):
        path = RIG / "setup.json"
        steps = json.loads(path.read_text()) if path.exists() else {}
        steps[f"{step}, built" if builds else step] = {key: round(value, 2) for key, value in taken.items()}
        path.write_text(json.dumps(steps, indent=1))


@contextmanager
def locked(name: str = "lock") -> Iterator[None]:
    """One test process at a time builds."""
    RIG.mkdir(parents=True, exist_ok=True)
    with (RIG / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def rig() -> Path:
    """The folder of the rigs, on a machine that can have them."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("dpkg-query") is None:
        unavailable("the rigs need root on Debian")
    return RIG


def is_built(folder: Path) -> bool:
    """Whether there is a runner of this version."""
    try:
        return load_bundle(folder) is not None
    except ArtifactError:
        return False


@pytest.fixture(scope="session")
def native(rig: Path) -> Iterator[Path]:
    """The native runner, built from its pinned packages."""
    folder = rig / "runner"
    with locked():
        if not is_built(folder):
            packages("g++-12-aarch64-linux-gnu", "cmake", "make", *([] if shutil.which("npm") else ["npm"]))
            try:
                with recorded("runner", builds=True):
                    build_runner(folder, force=True)
            except EdgefoldError as error:
                unavailable(f"the native runner cannot be built here: {error}")
    old = os.environ.get("EDGEFOLD_RUNNER")
    os.environ["EDGEFOLD_RUNNER"] = str(folder)
    yield folder
    if old is None:
        del os.environ["EDGEFOLD_RUNNER"]
    else:
        os.environ["EDGEFOLD_RUNNER"] = old


@pytest.fixture(scope="session")
def counting(rig: Path) -> None:
    """What counts instructions."""
    packages("qemu-user", "gcc", "libc6-dev")


@pytest.fixture(scope="session")
def board(rig: Path) -> Iterator[Path]:
    """A board behind sshd; gives the configuration file for ssh."""
    ports = [str(free_port()) for _ in range(2)]
    with locked():
        if not (rig / "arm64").exists():
            with recorded("board", builds=True):
                script("arm_root.sh", str(rig))
    with recorded("board"):
        script("ssh_device.sh", "start", str(rig), *ports)
    yield rig / "ssh_config"
    script("ssh_device.sh", "stop", str(rig), *ports)


@pytest.fixture(scope="session")
def phone(rig: Path) -> Iterator[str]:
    """A phone behind adbd; gives its URL."""
    port = str(free_port())
    with recorded("phone", builds=not (rig / "android" / "root").exists()):
        script("adb_device.sh", "start", str(rig), port)
    old = os.environ.get("ADB")
    os.environ["ADB"] = str(rig / "adb")
    yield f"adb://127.0.0.1:{port}"
    if old is None:
        del os.environ["ADB"]
    else:
        os.environ["ADB"] = old
    script("adb_device.sh", "stop", str(rig), port)


@pytest.fixture
def adb_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A real adb of this machine with a server of its own; gives the client's path."""
    adb = shutil.which("adb")
    if adb is None:
        packages("adb")
        adb = shutil.which("adb") or "adb"
    # Its key pair goes into the home folder.
    names = {"ADB": adb, "ANDROID_ADB_SERVER_PORT": str(free_port()), "ADB_MDNS": "0", "HOME": str(tmp_path)}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    subprocess.run([adb, "start-server"], capture_output=True, timeout=60, check=True)
    yield adb
    subprocess.run([adb, "kill-server"], capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def old_python() -> Path:
    """A Python with tflite-runtime 2.14.0 and nothing of ours."""
    folder = RIG / "tflite-runtime"
    python = folder / "bin" / "python"
    with locked():
        if not (folder / "ready").exists():
            with recorded("old Python", builds=True):
                venv.create(folder, with_pip=True, clear=True)
                packages = ["tflite-runtime==2.14.0", "numpy<2"]
                argv = [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--only-binary=:all:",
                    *packages,
                ]
                done = subprocess.run(argv, capture_output=True, text=True, timeout=SETUP_S)
            if done.returncode:
                unavailable(f"tflite-runtime cannot be installed here: {(done.stderr.splitlines() or ['?'])[-1]}")
            (folder / "ready").touch()
    return python


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the tiny models."""
    return TINY
