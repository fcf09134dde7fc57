"""A board behind OpenSSH's own client, with the user's configuration, keys, agent and known hosts.

Host keys are verified as the user's configuration says; nothing can be asked here (BatchMode), so an unknown host is refused. One
connection carries all commands (ControlMaster). Files travel as a tar stream.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from edgefold.device_bench.runners.base import Completed, RemotePath, checked_name
from edgefold.device_bench.runners.client import run_client
from edgefold.device_bench.runners.shell import ShellRunner
from edgefold.errors import DeviceError, UsageError
from edgefold.runtime.protocol import last_line

FOLDERS = ("$TMPDIR", "/tmp", "/var/tmp", "$HOME")
CONNECT_S = 10
# What ssh says, and what to do about it.
HINTS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed",
        "its host key is unknown or not the one in known_hosts: compare it with the board's, then connect once with ssh",
    ),
    (r"Permission denied \(", "it refused our key: add your public key there (ssh-copy-id)"),
    (r"Could not resolve hostname", "its name is unknown: check the URL, or ~/.ssh/config"),
    (
        r"Connection refused|No route to host|timed out|Network is unreachable|Connection closed|reset by peer",
        "it cannot be reached: check that it is on, in this network, and runs sshd",
    ),
)


class SshRunner(ShellRunner):
    """Runs on ``[user@]host[:port]``."""

    def __init__(
        self, target: str, *, config: Path | None = None, folder: str | None = None, python: str = "python3", keep: bool = False
    ) -> None:
        user, host, port = parse_target(target)
        super().__init__(f"ssh://{target}", folders=(folder,) if folder else FOLDERS, python=python, keep=keep)
        # A socket's path has room for about 100 characters.
        self._control = Path(tempfile.mkdtemp(prefix="ef-", dir="/tmp" if Path("/tmp").is_dir() else None))
        options = [
            "-o",
            "BatchMode=yes",
            "-o",
            "ControlMaster=auto",
            "-o",
            f"ControlPath={self._control}/%C",
            "-o",
            "ControlPersist=60",
        ]
        options += ["-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        options += ["-o", "RequestTTY=no", "-o", "LogLevel=ERROR"]
        options += ["-F", str(config)] if config else []
        options += ["-l", user] if user else []
        options += ["-p", port] if port else []
        self._argv = ["ssh", *options, "--", host]
        self._exit = ["ssh", *options, "-O", "exit", "--", host]

    def _line(self, line: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Completed:
        # The user's login shell there may be any; sh is always there.
        done = run_client([*self._argv, f"sh -c {shlex.quote(line)}"], timeout_s=timeout_s, stdin=stdin)
        if done.returncode == 255:
            said = done.stderr.decode("utf-8", errors="replace")
            for pattern, hint in HINTS:
                if re.search(pattern, said):
                    raise DeviceError(f"device '{self.url}': {hint} ({last_line(done.stderr)})")
        return done

    def _send(self, local: Path, remote: RemotePath, *, timeout_s: float) -> None:
        folder = shlex.quote(remote)
        with tempfile.TemporaryFile() as stream:
            with tarfile.open(fileobj=stream, mode="w", dereference=True, format=tarfile.USTAR_FORMAT) as archive:
                archive.add(local, arcname=".", filter=_anonymous)
            stream.seek(0)
            done = self._checked(f"mkdir {folder} && tar -xf - -C {folder}", timeout_s=timeout_s, stdin=stream)
        if done.returncode:
            raise DeviceError(f"sending files to device '{self.url}' failed: {last_line(done.stderr)}; check its free space")

    def _close(self) -> None:
        try:
            run_client(self._exit, timeout_s=CONNECT_S)
        except DeviceError:
            # The connection was never made or is gone: what it leaves behind is the socket's folder, which goes now.
            pass
        finally:
            shutil.rmtree(self._control, ignore_errors=True)


def parse_target(target: str) -> tuple[str | None, str, str | None]:
    """User, host and port of ``[user@]host[:port]``; an IPv6 address stands in brackets.

    Raises:
        UsageError: a part of it cannot be used.
    """
    user, at, rest = target.rpartition("@")
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\](?::(\d{1,5}))?", rest)
    plain = re.fullmatch(r"([^:\[\]]*)(?::(\d{1,5}))?", rest)
    match = bracketed or plain
    if match is None or (at and not user):
        raise UsageError(f"'ssh://{target[:80]}' cannot be read; expected ssh://user@board or ssh://user@board:port")
    host, port = match.group(1), match.group(2)
    if "@" in host or "@" in user or "%" in user:
        raise UsageError(f"'ssh://{target[:80]}' cannot be read; expected one @ between user and board")
    return (checked_name("user", user) if at else None), checked_name("host", host), port


def ssh_config_from_environment() -> Path | None:
    """The file that EDGEFOLD_SSH_CONFIG names."""
    value = os.environ.get("EDGEFOLD_SSH_CONFIG")
    return Path(value) if value else None


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """A tar entry without this machine's owners; what is executable stays so, for the owner there alone."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o700 if entry.isdir() or entry.mode & 0o100 else 0o600
    return entry
