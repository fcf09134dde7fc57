"""Which devices there are and how they are: this machine, attached phones and the named ones."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgefold.device_bench.named import named_devices
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.adb import STATE_HINTS, attached
from edgefold.device_bench.runners.base import NoPlaceError
from edgefold.errors import EdgefoldError
from edgefold.results import DeviceInfo

READY, UNREACHABLE = "ready", "unreachable"


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device. ``state`` is ``ready``, ``unreachable``, ``no space``, ``read-only``, ``no folder``, ``not writable``, or adb's
    word (``unauthorized``, ``offline``, ...)."""

    name: str  # what to give to --device
    url: str
    state: str
    detail: str = ""
    info: DeviceInfo | None = None


def devices(urls: Sequence[str] = (), *, ssh_config: Path | None = None) -> list[DeviceStatus]:
    """The state of these devices, or else of this machine, all attached phones and all named devices; at the same time."""
    found: list[DeviceStatus] = []
    ask = list(urls)
    if not urls:
        ask = ["host"]
        for phone in _phones(found):
            if phone.state == READY:
                ask.append(phone.name)
            else:
                found.append(phone)
        ask += list(named_devices())
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [*pool.map(lambda each: status(each, ssh_config=ssh_config), ask), *found]


def status(device: str, *, ssh_config: Path | None = None) -> DeviceStatus:
    """The state of one device; one that cannot be used says why in ``detail``."""
    url = device
    try:
        runner = open_runner(device, ssh_config=ssh_config)
        url = runner.url
        with runner:
            return DeviceStatus(device, runner.url, READY, info=runner.info())
    except EdgefoldError as error:
        text = str(error)
        other = error.state if isinstance(error, NoPlaceError) else UNREACHABLE
        state = next((word for word in STATE_HINTS if f"state: {word}" in text), other)
        return DeviceStatus(device, url, state, text)


def _phones(failures: list[DeviceStatus]) -> list[DeviceStatus]:
    """What adb knows; where there is no adb there are no phones."""
    try:
        phones = attached()
    except EdgefoldError as error:
        if "not installed" not in str(error):
            failures.append(DeviceStatus("adb://", "adb://", UNREACHABLE, str(error)))
        return []
    return [
        DeviceStatus(
            f"adb://{phone.serial}",
            f"adb://{phone.serial}",
            READY if phone.state == "device" else phone.state,
            STATE_HINTS.get(phone.state, ""),
        )
        for phone in phones
    ]
