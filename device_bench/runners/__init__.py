"""The ways to reach a device, chosen by the scheme of its URL. A new one is one file here and one line in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgefold.device_bench.runners.base import Completed, RemotePath, Runner
from edgefold.errors import unknown_name

__all__ = ["SCHEMES", "Completed", "RemotePath", "Runner", "open_runner"]


def _host(rest: str, ssh_config: Path | None, keep: bool) -> Runner:
    from edgefold.device_bench.runners.host import HostRunner

    return HostRunner(keep=keep)


def _fake(rest: str, ssh_config: Path | None, keep: bool) -> Runner:
    from edgefold.device_bench.runners.fake import FakeRunner

    return FakeRunner()


SCHEMES: dict[str, Callable[[str, Path | None, bool], Runner]] = {"host": _host, "fake": _fake}


def open_runner(url: str, *, ssh_config: Path | None = None, keep: bool = False) -> Runner:
    """The runner for a device; nothing is contacted before its ``with`` block begins.

    Raises:
        UsageError: the scheme is unknown, or the rest of the URL cannot be used.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or (rest and scheme in ("host", "fake")):
        raise unknown_name("device", url, [f"{name}://" if name in ("ssh", "adb") else name for name in SCHEMES])
    return SCHEMES[scheme](rest, ssh_config, keep)
