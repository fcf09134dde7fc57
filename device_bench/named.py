"""Devices by name, from a TOML file in the user's configuration folder (``edgefold/devices.toml``; EDGEFOLD_DEVICES names
another)::

[bench-pi]
url = "ssh://pi@bench-pi.local"
ssh_config = "~/lab/ssh_config"     # another configuration file for OpenSSH
folder = "/data/bench"              # where our files go, instead of /tmp or /data/local/tmp
python = "/opt/venv/bin/python"     # instead of python3
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from edgefold.errors import UsageError, unknown_name

DEFAULT_PYTHON = "python3"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How to reach a device and what to use there."""

    url: str
    ssh_config: Path | None = None
    folder: str | None = None
    python: str = DEFAULT_PYTHON


def devices_file() -> Path:
    """The file with the named devices; it need not exist."""
    value = os.environ.get("EDGEFOLD_DEVICES")
    if value:
        return Path(value)
    from platformdirs import user_config_path

    return user_config_path("edgefold") / "devices.toml"


def named_devices(path: Path | None = None) -> dict[str, DeviceSettings]:
    """The named devices, empty where there is no file.

    Raises:
        UsageError: the file cannot be read as what it should be.
    """
    path = path or devices_file()
    if not path.is_file():
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"the devices file '{path}' cannot be read ({error}); correct it or remove it") from error
    return {name: _settings(path, name, entry) for name, entry in data.items()}


def _settings(path: Path, name: str, entry: object) -> DeviceSettings:
    known = [field.name for field in fields(DeviceSettings)]
    if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
        raise UsageError(f"device '{name}' in '{path}' has no url; write [{name}] and below it url = \"ssh://user@board\"")
    for key, value in entry.items():
        if key not in known:
            raise unknown_name(f"key in [{name}] of '{path}'", key, known)
        if not isinstance(value, str):
            raise UsageError(f"'{key}' of device '{name}' in '{path}' is {value!r}, expected a text in quotes")
    folder = entry.get("folder")
    if folder is not None and not folder.startswith("/"):
        raise UsageError(f"'folder' of device '{name}' in '{path}' is '{folder}', expected an absolute path there")
    config = entry.get("ssh_config")
    return DeviceSettings(
        entry["url"], Path(config).expanduser() if config else None, folder, entry.get("python", DEFAULT_PYTHON)
    )
