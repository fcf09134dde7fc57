"""One way to reach a device: what every runner can do, and the rules that all of them keep.

A runner is a context manager. What it pushes lives in one folder of its own with a generated name, which is gone when the
context ends, however it ends, unless it was told to keep it. Names on the device are generated here and never come from the
caller, and commands are lists of arguments: whoever goes through a shell quotes each.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from edgefold.errors import DeviceError, UsageError
from edgefold.results import DeviceInfo

RemotePath = str  # absolute, on the device

# A device with less room takes no model.
MIN_FREE_KB = 1024

# Hosts, users and serials: what DNS, IPv6, usb and emulator names need, and nothing that a shell or ssh could read as more.
SAFE_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.:@%+-]{0,252}")
SAFE_PATH = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_.][A-Za-z0-9_.+-]*)*")


class NoPlaceError(DeviceError):
    """There is no folder on the device for our files; ``state`` says why in two words (`PLACE_STATES`)."""

    def __init__(self, url: str, reason: str) -> None:
        words = reason.lower()
        self.state, advice = next((state, advice) for word, state, advice in PLACE_STATES if word in words)
        super().__init__(f"device '{url}' has no place for our files ({reason}); {advice}, or set 'folder' for it")


# What a system says, the state, and what to do.
PLACE_STATES = (
    ("no space", "no space", "free some space"),
    ("read-only", "read-only", "mount it writable"),
    ("no such file", "no folder", "create it"),
    ("", "not writable", "allow this user to write there"),
)


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that came to its end on the device. ``returncode`` is negative or 128 + n after signal n."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Runner(Protocol):
    """A device that can be reached. All methods raise `edgefold.errors.DeviceError` when it is not, or not any more."""

    @property
    def url(self) -> str:
        """How the device is named: ``host``, ``ssh://user@board``, ``adb://SERIAL``."""
        ...

    @property
    def kept(self) -> RemotePath | None:
        """The folder that was left on the device, once the runner that was told to keep it has ended."""
        ...

    @property
    def python(self) -> str:
        """The command that may be a Python there."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def info(self) -> DeviceInfo:
        """The device and its state now."""
        ...

    def push(self, local: Path) -> RemotePath:
        """Copies a file, or a folder with all in it, to a new place on the device; every hash is compared there."""
        ...

    def pull(self, remote: RemotePath, local: Path) -> None:
        """Copies one file from the device; its hash is compared here."""
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Runs a command to its end; one that takes longer is killed on the device and raises."""
        ...

    def remove(self, remote: RemotePath) -> None:
        """Removes what `push` made."""
        ...


def checked_name(kind: str, name: str) -> str:
    """A host, user or serial that is safe to give to ssh and adb.

    Raises:
        UsageError: it begins with ``-`` or holds anything but letters, digits and ``._:@%+-``.
    """
    if not SAFE_NAME.fullmatch(name):
        raise UsageError(
            f"{kind} {name[:80]!r} cannot be used: expected letters, digits and ._:@%+- with no dash in front; "
            "check the --device URL"
        )
    return name


def unique_name(stem: str = "edgefold") -> str:
    """A new name for something on a device; runs at the same time never meet."""
    return f"{stem}-{secrets.token_hex(8)}"


def files_below(local: Path) -> list[tuple[str, Path]]:
    """Each file of a folder (or the file itself) with its relative posix name.

    Raises:
        UsageError: it does not exist, or a name in it holds what a device's tools could misread.
    """
    if local.is_file():
        files = [(local.name, local)]
    elif local.is_dir():
        files = sorted((path.relative_to(local).as_posix(), path) for path in local.rglob("*") if path.is_file())
    else:
        raise UsageError(f"'{local}' does not exist; only a file or folder can be sent to a device")
    for name, _ in files:
        if not SAFE_PATH.fullmatch(name):
            raise UsageError(f"file name {name[:80]!r} cannot be sent to a device; rename it to letters, digits and ._+-")
    return files
