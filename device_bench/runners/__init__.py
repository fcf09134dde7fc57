"""The ways to reach a device, chosen by the scheme of its URL. A new one is one file here and one line in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgefold.device_bench.named import DeviceSettings, named_devices
from edgefold.device_bench.runners.base import Completed, RemotePath, Runner
from edgefold.errors import unknown_name

__all__ = ["SCHEMES", "Completed", "RemotePath", "Runner", "open_runner"]


def _host(settings: DeviceSettings, rest: str, keep: bool) -> Runner:
    from edgefold.device_bench.runners.host import HostRunner

    return HostRunner(keep=keep)


def _fake(settings: DeviceSettings, rest: str, keep: bool) -> Runner:
    from edgefold.device_bench.runners.fake import FakeRunner

    return FakeRunner()


def _ssh(settings: DeviceSettings, rest: str, keep: bool) -> Runner:
    from edgefold.device_bench.runners.ssh import SshRunner, ssh_config_from_environment

    config = settings.ssh_config or ssh_config_from_environment()
    return SshRunner(rest, config=config, folder=settings.folder, python=settings.python, keep=keep)


def _adb(settings: DeviceSettings, rest: str, keep: bool) -> Runner:
    from edgefold.device_bench.runners.adb import AdbRunner

    return AdbRunner(rest, folder=settings.folder, python=settings.python, keep=keep)


SCHEMES: dict[str, Callable[[DeviceSettings, str, bool], Runner]] = {"host": _host, "fake": _fake, "ssh": _ssh, "adb": _adb}


def open_runner(device: str, *, ssh_config: Path | None = None, keep: bool = False) -> Runner:
    """The runner for a device's URL or its name in the devices file; nothing is contacted before its ``with`` block begins.

    Raises:
        UsageError: the scheme or name is unknown, or the rest of the URL cannot be used.
    """
    settings = DeviceSettings(device)
    if "://" not in device and device not in SCHEMES:
        named = named_devices()
        if device not in named:
            raise unknown_name("device", device, ["host", "ssh://user@board", "adb://SERIAL", *named])
        settings = named[device]
    if ssh_config is not None:
        settings = replace(settings, ssh_config=ssh_config)
    scheme, separator, rest = settings.url.partition("://")
    local = scheme in ("host", "fake")
    if scheme not in SCHEMES or (local and separator) or (scheme in ("ssh", "adb") and not separator):
        raise unknown_name("device", settings.url, ["host", "ssh://user@board", "adb://SERIAL", "fake"])
    return SCHEMES[scheme](settings, rest, keep)
