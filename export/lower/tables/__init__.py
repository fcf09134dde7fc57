"""Cost tables that ship with the package: only classes of CPU on which they were really measured."""

from __future__ import annotations

import functools
import platform
from importlib import resources
from pathlib import Path
from typing import Final

from edgefold.export.lower.costs import CostTable

# Class of CPU -> the features that a CPU of the class has, most demanding first.
CLASSES: Final[dict[str, frozenset[str]]] = {
    "x86-avx512-vnni-amx": frozenset({"avx512f", "avx512_vnni", "amx_int8"}),
    "x86-avx512-vnni": frozenset({"avx512f", "avx512_vnni"}),
    "x86-avx2": frozenset({"avx2", "fma"}),
}


def cpu_class(machine: str, features: frozenset[str]) -> str | None:
    """The class of a CPU, by its ``uname -m`` and its feature flags; None where there is no class for it."""
    if machine != "x86_64":
        return None
    return next((name for name, needed in CLASSES.items() if needed <= features), None)


@functools.cache
def shipped_table() -> CostTable | None:
    """The table for the class of this machine's CPU, if that class was measured."""
    name = cpu_class(platform.machine(), cpu_features())
    if name is None:
        return None
    file = resources.files(__name__).joinpath(f"{name}.json")
    return CostTable.from_json(file.read_text(encoding="utf-8"), file.name) if file.is_file() else None


def cpu_features() -> frozenset[str]:
    """The feature flags of this CPU; empty where the system does not tell."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    lines = path.read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
