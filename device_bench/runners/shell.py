"""What ssh and adb have in common: a POSIX shell on the other side that runs one line of ours at a time.

Every line prints `BEGIN` first and its exit code itself last (`MARK`): a connection that breaks half-way is then never taken
for success, whatever exit code the client gives. A command writes its process id into the runner's own folder first, so that a
timeout, Ctrl-C or the end of the context can kill it where it runs. Everything that is sent is hashed on the device afterwards.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edgefold.artifact import sha256_of
from edgefold.device_bench.device import PROBE, parse_device
from edgefold.device_bench.runners.base import MIN_FREE_KB, Completed, NoPlaceError, RemotePath, files_below, unique_name
from edgefold.device_bench.runners.client import ClientTimeoutError
from edgefold.errors import DeviceError
from edgefold.results import DeviceInfo
from edgefold.runtime.protocol import last_line

BEGIN, MARK = "@edgefold-begin", "@edgefold-exit"
MARK_PATTERN = re.compile(rb"\n" + MARK.encode() + rb" (\d{1,3})\r?\n?\Z")
QUICK_S = 30.0
TRANSFER_S, TRANSFER_BYTES_PER_S = 60.0, 500_000


# Chooses the first of the folders ($@) in which ours ($0) can be made and that has room; says on stderr what is wrong with each
# before. `df` comes without a column that could be cut out: the number before the share is what is free, in kB.
PLACE = r"""
LC_ALL=C; export LC_ALL; umask 077
for d in "$@"; do
[ -n "$d" ] || continue
if said=$(mkdir "$d/$0" 2>&1); then
free=; for w in $(df -Pk "$d/$0" 2>/dev/null | tail -n 1); do case $w in *%) break;; esac; free=$w; done
case $free in ''|*[!0-9]*) free=@MIN@;; esac
[ "$free" -ge @MIN@ ] && echo "$d/$0" && exit 0
rmdir "$d/$0"; said="no space: $free kB free, @MIN@ needed"
fi
echo "$d: $said" >&2
done
exit 1
""".replace("@MIN@", str(MIN_FREE_KB))


class ShellRunner(ABC):
    """A device behind a shell. A subclass says how a line gets there and how a folder does."""

    def __init__(self, url: str, *, folders: Sequence[str], python: str = "python3", keep: bool = False) -> None:
        self.url = url
        self.python = python
        self._folders = folders
        self._keep = keep
        self.kept: RemotePath | None = None
        self._work: RemotePath | None = None

    @abstractmethod
    def _line(self, line: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Completed:
        """Runs one line in the device's shell; raises ClientTimeoutError, or DeviceError where the client says why it failed."""

    @abstractmethod
    def _send(self, local: Path, remote: RemotePath, *, timeout_s: float) -> None:
        """Copies a folder's files to a folder that does not exist yet."""

    @abstractmethod
    def _close(self) -> None:
        """Ends the connection."""

    def __enter__(self) -> Self:
        name = unique_name()
        places = " ".join(f'"{folder}"' for folder in self._folders)
        try:
            done = self._checked(f"sh -c {shlex.quote(PLACE)} {name} {places}", timeout_s=QUICK_S)
            found = done.stdout.decode("utf-8", errors="replace").strip()
            if done.returncode or not found.startswith("/") or "\n" in found:
                said = done.stderr.decode("utf-8", errors="replace").splitlines()
                full = [line for line in said if "no space" in line.lower()]
                raise NoPlaceError(self.url, next(iter([*full, *reversed(said)]), "no folder can be written"))
        except BaseException:
            self._close()
            raise
        self._work = found
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        work, self._work = self._work, None
        try:
            if work is not None:
                self._clean(work)
        except DeviceError as failure:
            text = f"'{work}' may be left on device '{self.url}' ({failure}); remove it by hand"
            if error is None:
                raise DeviceError(text) from failure
            error.add_note(text)
        finally:
            self._close()

    def _clean(self, work: RemotePath) -> None:
        """Ends what still runs and removes the folder (or keeps it)."""
        folder = shlex.quote(work)
        line = f'for f in {folder}/*.pid; do [ -f "$f" ] && kill -KILL "$(cat "$f")"; done 2>/dev/null; '
        line += "true" if self._keep else f"rm -rf {folder}"
        if self._keep:
            self.kept = work
        done = self._checked(line, timeout_s=QUICK_S)
        if done.returncode:
            raise DeviceError(last_line(done.stderr) or f"exit code {done.returncode}")

    def info(self) -> DeviceInfo:
        """The device and its state now."""
        done = self._checked(f"sh -c {shlex.quote(PROBE)} 2>/dev/null", timeout_s=QUICK_S)
        return parse_device(done.stdout.decode("utf-8", errors="replace"), self.url)

    def push(self, local: Path) -> RemotePath:
        """Copies a file or folder and compares the hash of every file."""
        files = files_below(local)
        size = sum(path.stat().st_size for _, path in files)
        remote = f"{self._folder()}/{unique_name('case')}"
        # Links are followed here, so that every transport sees plain files; a single file travels in a folder too.
        with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
            staged = Path(temporary) / "case"
            for name, path in files:
                target = staged / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
            try:
                self._send(staged, remote, timeout_s=TRANSFER_S + size / TRANSFER_BYTES_PER_S)
            except ClientTimeoutError as error:
                raise DeviceError(
                    f"sending '{local.name}' ({size} bytes) to '{self.url}' took too long; check the connection"
                ) from error
        self._verify(remote, {name: sha256_of(path) for name, path in files}, TRANSFER_S + size / TRANSFER_BYTES_PER_S)
        return remote if local.is_dir() else f"{remote}/{files[0][0]}"

    def _verify(self, remote: RemotePath, expected: dict[str, str], timeout_s: float) -> None:
        names = " ".join(shlex.quote(f"./{name}") for name in expected)
        done = self._checked(f"cd {shlex.quote(remote)} && sha256sum {names}", timeout_s=timeout_s)
        lines = re.findall(r"^([0-9a-f]{64})\s+\*?\./(.*?)\r?$", done.stdout.decode("utf-8", errors="replace"), re.MULTILINE)
        found = {name: digest for digest, name in lines}  # two files may have the same content
        wrong = [name for name, digest in expected.items() if found.get(name) != digest]
        if wrong:
            reason = last_line(done.stderr)
            raise DeviceError(
                f"'{wrong[0]}' did not arrive whole on device '{self.url}' ({reason or 'its SHA-256 differs'}); "
                "check the connection and the free space, and try again"
            )

    def pull(self, remote: RemotePath, local: Path) -> None:
        """Copies one file back and compares its hash."""
        path = shlex.quote(remote)
        done = self._checked(f"sha256sum <{path} && cat {path}", timeout_s=TRANSFER_S)
        head, _, data = done.stdout.partition(b"\n")
        if done.returncode:
            raise DeviceError(f"'{remote}' cannot be read from device '{self.url}': {last_line(done.stderr)}; run it again")
        local.write_bytes(data)
        if sha256_of(local).encode() != head.split(b" ")[0].strip():
            local.unlink()
            raise DeviceError(f"'{remote}' did not arrive whole from device '{self.url}'; check the connection and try again")

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Runs a command; on a timeout or Ctrl-C it is killed on the device."""
        pid = f"{self._folder()}/{unique_name('run')}.pid"
        words = " ".join(shlex.quote(word) for word in argv)
        inner = shlex.quote('echo $$ >"$0" && exec "$@"')
        line = f"sh -c {inner} {shlex.quote(pid)} {words} </dev/null; code=$?; rm -f {shlex.quote(pid)}; (exit $code)"
        try:
            return self._checked(line, timeout_s=timeout_s)
        except BaseException as error:
            self._kill(pid, error)
            if isinstance(error, ClientTimeoutError):
                raise DeviceError(
                    f"'{Path(argv[0]).name}' did not finish on device '{self.url}' within {timeout_s:g} s and was stopped; "
                    "give it more time, or check the device"
                ) from error
            raise

    def remove(self, remote: RemotePath) -> None:
        """Removes what `push` made."""
        if not self._keep:
            folder = remote if remote.count("/") == self._folder().count("/") + 1 else remote.rpartition("/")[0]
            self._checked(f"rm -rf {shlex.quote(folder)}", timeout_s=QUICK_S)

    def _kill(self, pid: RemotePath, error: BaseException) -> None:
        path = shlex.quote(pid)
        try:
            self._checked(f'[ ! -f {path} ] || kill -KILL "$(cat {path})"; rm -f {path}', timeout_s=QUICK_S)
        except DeviceError as failure:
            error.add_note(f"it may still run on device '{self.url}' ({failure}); its own time limit ends it")

    def _folder(self) -> RemotePath:
        if self._work is None:
            raise DeviceError(f"the runner for '{self.url}' is closed; use it inside its 'with' block")
        return self._work

    def _checked(self, line: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Completed:
        """Runs a line and takes its exit code from the line's own mark."""
        marked = f"printf '{BEGIN}\\n'; {line}\nprintf '\\n{MARK} %d\\n' $?"
        done = self._line(marked, timeout_s=timeout_s, stdin=stdin)
        # What a login script prints comes before.
        _, begin, stdout = done.stdout.partition(f"{BEGIN}\n".encode())
        match = MARK_PATTERN.search(stdout)
        if match is None or not begin:
            reason = last_line(done.stderr) or f"the client's exit code was {done.returncode}"
            raise DeviceError(
                f"the connection to device '{self.url}' broke before the command ended ({reason}); check it and try again"
            )
        return Completed(int(match.group(1)), stdout[: match.start()], done.stderr)
