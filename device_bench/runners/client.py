"""Runs a local program (ssh, adb, a worker on this machine) so that nothing of it outlives a timeout or Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from edgefold.device_bench.runners.base import Completed
from edgefold.errors import DeviceError

_running: set[subprocess.Popen[bytes]] = set()


class ClientTimeoutError(DeviceError):
    """The client did not end in time; it was killed."""


def run_client(
    argv: Sequence[str], *, timeout_s: float, stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> Completed:
    """Runs a client to its end in a process group of its own: Ctrl-C reaches this process only, which then cleans up.

    Raises:
        ClientTimeoutError: it took longer than ``timeout_s``.
        DeviceError: the program is not installed.
    """
    source = subprocess.DEVNULL if stdin is None else stdin
    try:
        process = subprocess.Popen(
            argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=env
        )
    except OSError as error:
        raise DeviceError(f"'{argv[0]}' cannot be started: {error.strerror}; install it, or name another one") from error
    with process:
        _running.add(process)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ClientTimeoutError(f"'{argv[0]}' gave no answer within {timeout_s:g} s; check the connection") from error
        finally:
            _running.discard(process)
            _kill(process)
    return Completed(process.returncode, stdout, stderr)


def stop_clients() -> None:
    """Ends what runs now, in whatever thread; those that wait for it see a broken connection, and clean up."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
