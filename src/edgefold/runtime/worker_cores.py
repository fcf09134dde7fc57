"""Which cores the worker's process runs on.

A part of `worker`, with its limits: standard library only, syntax of Python 3.9.
"""

from __future__ import annotations

import os
from pathlib import Path

ONLINE = Path("/sys/devices/system/cpu/online")


class CoresError(Exception):
    """This device has no such cores, or does not let this process run on them."""

    kind = "cores"


def affinity() -> list[int] | None:
    """The cores that this process may run on, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def pin(cores: list[int]) -> None:
    """Keeps this process on these cores, if any are given. Raises CoresError where it cannot have all of them."""
    if not cores:
        return
    missing = cores
    try:
        os.sched_setaffinity(0, cores)
        # The kernel takes those of a list that there are.
        missing = [core for core in cores if core not in os.sched_getaffinity(0)]
    except OSError:
        pass
    if missing:
        there = ONLINE.read_text(encoding="ascii").strip() if ONLINE.is_file() else f"0-{(os.cpu_count() or 1) - 1}"
        words = ", ".join(map(str, missing))
        raise CoresError(f"cores '{words}' cannot be used: the device has cores {there}; choose others, or none")
