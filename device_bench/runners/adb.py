"""A phone behind adb.

``ADB`` names another adb; ``ANDROID_SERIAL`` the phone where the URL does not; ``ANDROID_ADB_SERVER_PORT`` is adb's own. An
exit code of adb proves nothing (0 after a refused connect, a truncated push, a connection that broke), so states are asked
for and hashes compared.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edgefold.device_bench.runners.base import Completed, RemotePath, checked_name, files_below
from edgefold.device_bench.runners.client import ClientTimeoutError, run_client
from edgefold.device_bench.runners.shell import ShellRunner
from edgefold.errors import DeviceError
from edgefold.runtime.protocol import last_line

FOLDER = "/data/local/tmp"
ADB_S = 20.0
NETWORK_SERIAL = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}")
STATE_HINTS = {
    "unauthorized": "it does not trust this computer: unlock it and allow USB debugging",
    "authorizing": "it does not trust this computer yet: unlock it and allow USB debugging",
    "connecting": "adb is still connecting to it: run this again in a moment",
    "offline": "it is offline: unplug it and plug it in again, or restart 'adb'",
    "no permissions": "this user may not open it: add the udev rule of your phone's maker",
    "recovery": "it is in recovery mode: restart it",
    "bootloader": "it is in its bootloader: restart it",
    "sideload": "it waits for a sideload: restart it",
}


@dataclass(frozen=True, slots=True)
class Attached:
    """One line of ``adb devices -l``."""

    serial: str
    state: str
    model: str | None = None


def adb_binary() -> str:
    """The adb to use: ``ADB``, the one in PATH, or the one that adbutils brings.

    Raises:
        DeviceError: there is none.
    """
    named = os.environ.get("ADB") or shutil.which("adb")
    if named:
        return named
    try:
        from adbutils import adb_path
    except ModuleNotFoundError:
        raise DeviceError(
            "adb is not installed; install the Android platform tools, or: pip install 'edgefold[device]'"
        ) from None
    return str(adb_path())


def attached() -> list[Attached]:
    """The phones that adb knows now."""
    try:
        done = run_client([adb_binary(), "devices", "-l"], timeout_s=ADB_S)
    except ClientTimeoutError as error:
        raise DeviceError(f"'adb devices' did not answer within {ADB_S:g} s; restart it with 'adb kill-server'") from error
    if done.returncode:
        raise DeviceError(f"'adb devices' failed: {last_line(done.stderr)}; restart it with 'adb kill-server'")
    return parse_devices(done.stdout.decode("utf-8", errors="replace"))


def parse_devices(text: str) -> list[Attached]:
    """The lines of ``adb devices -l`` after its heading."""
    found = []
    for line in text.splitlines():
        match = re.match(
            r"(\S+)\s+(device|offline|unauthorized|no permissions|recovery|bootloader|sideload|authorizing|connecting)\b(.*)",
            line,
        )
        if match:
            model = re.search(r"\bmodel:(\S+)", match.group(3))
            found.append(Attached(match.group(1), match.group(2), model.group(1) if model else None))
    return found


def choose_serial(serial: str, phones: list[Attached]) -> str:
    """The serial asked for, or else ANDROID_SERIAL's, or else the only one attached.

    Raises:
        DeviceError: none is attached, or several are.
        UsageError: the serial cannot be used.
    """
    serial = serial or os.environ.get("ANDROID_SERIAL", "")
    if serial:
        return checked_name("serial", serial)
    if len(phones) == 1:
        return checked_name("serial", phones[0].serial)
    if phones:
        names = ", ".join(phone.serial for phone in phones)
        raise DeviceError(f"{len(phones)} phones are attached ({names}); choose one with adb://SERIAL or ANDROID_SERIAL")
    raise DeviceError("no phone is attached; plug one in with USB debugging on, or use adb://HOST:PORT")


class AdbRunner(ShellRunner):
    """Runs on the phone with this serial."""

    def __init__(self, serial: str, *, folder: str | None = None, python: str = "python3", keep: bool = False) -> None:
        if serial:
            checked_name("serial", serial)
        self._serial = serial
        super().__init__(f"adb://{serial}", folders=(folder or FOLDER,), python=python, keep=keep)
        self._fixed_performance = False

    def __enter__(self) -> Self:
        self._adb = adb_binary()
        self._serial = choose_serial(self._serial, [] if self._serial else attached())
        self.url = f"adb://{self._serial}"
        self._ready()
        super().__enter__()
        # Holds the clocks at a level that can be kept for long; phones that cannot do it say no, which changes nothing.
        done = self._checked("cmd power set-fixed-performance-mode-enabled true 2>/dev/null", timeout_s=ADB_S)
        self._fixed_performance = done.returncode == 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._fixed_performance:
                self._fixed_performance = False
                self._checked("cmd power set-fixed-performance-mode-enabled false 2>/dev/null", timeout_s=ADB_S)
        except DeviceError as failure:
            if error is not None:
                error.add_note(f"fixed performance mode may still be on, on device '{self.url}' ({failure})")
        finally:
            super().__exit__(kind, error, trace)

    def _ready(self) -> None:
        """Sees to it that adb has the phone as a device."""
        state = self._state()
        if state != "device" and NETWORK_SERIAL.fullmatch(self._serial):
            self._client(["connect", self._serial], timeout_s=ADB_S)
            state = self._state()
        if state != "device":
            hint = STATE_HINTS.get(state, "adb does not know it: check the cable, the serial and 'adb devices'")
            raise DeviceError(f"device '{self.url}': {hint} (state: {state})")

    def _state(self) -> str:
        states = {phone.serial: phone.state for phone in attached()}
        return states.get(self._serial, "absent")

    def _client(self, arguments: list[str], *, timeout_s: float, stdin: IO[bytes] | None = None) -> Completed:
        return run_client([self._adb, "-s", self._serial, *arguments], timeout_s=timeout_s, stdin=stdin)

    def _line(self, line: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Completed:
        done = self._client(["shell", line], timeout_s=timeout_s, stdin=stdin)
        said = last_line(done.stderr)
        for state, hint in STATE_HINTS.items():
            if done.returncode and f"device {state}" in said:
                raise DeviceError(f"device '{self.url}': {hint} ({said})")
        return done

    def _send(self, local: Path, remote: RemotePath, *, timeout_s: float) -> None:
        with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
            # adb sends links as links.
            plain = Path(temporary) / "case"
            shutil.copytree(local, plain)
            for _, path in files_below(plain):
                path.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
            done = self._client(["push", str(plain), remote], timeout_s=timeout_s)
        if done.returncode:
            said = last_line(done.stderr) or last_line(done.stdout)
            raise DeviceError(f"sending files to device '{self.url}' failed: {said}; check the cable and the phone's free space")

    def _close(self) -> None:
        """Nothing: the adb server is shared, and stays."""
