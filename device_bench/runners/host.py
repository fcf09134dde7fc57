"""This machine as a device."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgefold.device_bench.device import PROBE, parse_device
from edgefold.device_bench.runners.base import MIN_FREE_KB, Completed, NoPlaceError, RemotePath, unique_name
from edgefold.device_bench.runners.client import ClientTimeoutError, run_client
from edgefold.errors import DeviceError
from edgefold.results import DeviceInfo

PROBE_TIMEOUT_S = 30.0


class HostRunner:
    """Runs on this machine, in a temporary folder."""

    url = "host"
    python = sys.executable

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._folder: Path | None = None
        self.kept: RemotePath | None = None

    def __enter__(self) -> Self:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="edgefold-"))
            free_kb = shutil.disk_usage(self._folder).free // 1024
        except OSError as error:
            raise NoPlaceError(self.url, f"{tempfile.tempdir or 'TMPDIR'}: {error.strerror}") from error
        if free_kb < MIN_FREE_KB:
            self._folder.rmdir()
            raise NoPlaceError(self.url, f"{self._folder.parent}: no space: {free_kb} kB free, {MIN_FREE_KB} needed")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None and self._keep:
            self.kept = str(self._folder)
        elif self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def info(self) -> DeviceInfo:
        """This machine and its state now."""
        done = self.run(["sh", "-c", PROBE], timeout_s=PROBE_TIMEOUT_S)
        return parse_device(done.stdout.decode("utf-8", errors="replace"), self.url)

    def push(self, local: Path) -> RemotePath:
        """Copies a file or folder into the runner's own folder."""
        if self._folder is None:
            raise DeviceError("the host runner is closed; use it inside its 'with' block")
        target = self._folder / unique_name("case")
        try:
            if local.is_dir():
                shutil.copytree(local, target)
            else:
                target.mkdir()
                shutil.copy2(local, target / local.name)
                target /= local.name
        except OSError as error:
            raise DeviceError(
                f"'{local}' cannot be copied to '{target}': {error.strerror}; free some space in the temporary folder"
            ) from error
        return str(target)

    def pull(self, remote: RemotePath, local: Path) -> None:
        """Copies one file back."""
        try:
            shutil.copyfile(remote, local)
        except OSError as error:
            raise DeviceError(f"'{remote}' cannot be read back from the host: {error.strerror}; run it again") from error

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Runs a command in a process group of its own, so that nothing of it outlives a timeout or Ctrl-C."""
        try:
            return run_client(argv, timeout_s=timeout_s)
        except ClientTimeoutError as error:
            raise DeviceError(
                f"'{Path(argv[0]).name}' did not finish on the host within {timeout_s:g} s and was stopped"
            ) from error

    def remove(self, remote: RemotePath) -> None:
        """Removes what `push` made."""
        if self._keep:
            return
        path = Path(remote)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
