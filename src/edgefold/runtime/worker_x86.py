"""Whether this CPU needs care with the integers of an ONNX file.

A part of `worker`, with its limits: standard library only, syntax of Python 3.9. x86 CPUs without VNNI add two products of 8 bits
in 16 bits, with saturation. A file that Edgefold wrote for a CPU with VNNI says so; elsewhere ONNX Runtime has to be told to
take its exact kernels. With VNNI that would only make it slower.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What `edgefold.export.emitters.metadata` writes; metadata stands at the end of an ONNX file.
MARK = b'"x86":"vnni"'
TAIL_BYTES = 65536


def needs_exact_kernels(path: str) -> bool:
    """Whether sums in the file can saturate on this CPU."""
    return platform.machine() in ("x86_64", "AMD64") and not has_vnni() and is_for_vnni(Path(path))


def has_vnni() -> bool:
    """Whether the CPU is an x86 one with VNNI, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_vnni" in flags or "avx_vnni" in flags


def is_for_vnni(path: Path) -> bool:
    """Whether the file says that it is for x86 CPUs with VNNI."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return MARK in file.read()
