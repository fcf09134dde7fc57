"""Cost tables that were measured on a user's own devices: one JSON file a device in the user's cache.

A device is named by its URL. This machine's file is also named after its CPU's features, since a home folder may be shared by
machines; times of a runtime whose version is no longer the installed one are left out. Of other devices it is not known
here what they have installed: what was measured there counts until it is measured again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from edgefold.artifact import Format, atomic_path
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.tables import cpu_features, shipped_table
from edgefold.export.plan import ESTIMATED

HOST: Final = "host"
# The distributions of a format's runtime in the order in which the worker looks for them.
RUNTIMES: Final[dict[Format, tuple[str, ...]]] = {
    Format.ONNX: ("onnxruntime",),
    Format.TFLITE: ("ai-edge-litert", "tflite-runtime"),
    Format.EXECUTORCH: ("executorch",),
}


def cache_folder() -> Path:
    """Where the tables are: EDGEFOLD_COSTS, or else the user's cache."""
    value = os.environ.get("EDGEFOLD_COSTS")
    if value:
        return Path(value)
    from platformdirs import user_cache_path

    return user_cache_path("edgefold") / "costs"


def table_path(device: str) -> Path:
    """The file of a device's table, whether it exists or not."""
    identity = f"{platform.machine()} {' '.join(sorted(cpu_features()))}" if device == HOST else device
    name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")[:60]
    return cache_folder() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def cached_table(device: str) -> CostTable | None:
    """What was measured on a device, as far as it is still true; ``None`` where nothing was.

    Raises:
        ArtifactError: the file is not a cost table.
        DataError: it cannot be read.
    """
    path = table_path(device)
    if not path.is_file():
        return None
    table = CostTable.load(path)
    if device != HOST:
        return table
    installed = installed_runtimes()
    return table.without({form for form in Format if table.runtimes.get(form.value) != installed.get(form.value)})


def shipped_for(form: Format) -> CostTable | None:
    """The shipped table of this class of CPU, as far as it is true of one format's runtime on this machine.

    Where the table was measured with another version of the runtime, or there is none here, its times are estimates: the source
    says so and names both.
    """
    table = shipped_table()
    measured = None if table is None else table.runtimes.get(form.value)
    installed = installed_runtimes().get(form.value)
    if table is None or measured is None or measured == installed:
        return table
    here = "here it is not installed" if installed is None else f"here it is {installed}"
    return replace(table, source=f"{ESTIMATED} from {table.source}, measured with {measured}; {here}")


def save_table(device: str, table: CostTable) -> None:
    """Keeps a table.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(table_path(device), force=True) as temporary:
        temporary.write_text(table.to_json(), encoding="utf-8")


def installed_runtimes() -> dict[str, str]:
    """The runtime of each format on this machine, as the worker names it; formats without one are left out."""
    found = {}
    for form, names in RUNTIMES.items():
        for name in names:
            try:
                found[form.value] = f"{name} {version(name)}"
            except PackageNotFoundError:
                continue
            break
    return found
