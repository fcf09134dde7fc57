"""What the export side knows of a file's ops, as the bench needs it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from edgefold.artifact import Format
from edgefold.errors import EdgefoldError
from edgefold.runtime.container import format_of, read_metadata


def fallback_ops(path: Path) -> tuple[str, ...]:
    """The ops that no delegate takes, as ``module (op)``; empty where the runtime has no delegates."""
    if format_of(path) is Format.ONNX:
        return ()
    with warnings.catch_warnings():
        _quiet()
        from edgefold.export.inspect import inspect

        try:
            return inspect(path).fallback_modules
        except EdgefoldError:
            # A file of another maker may run and still hold what the inspection does not know: then nothing is claimed.
            return ()


def mac_modules(path: Path) -> list[str]:
    """The modules of the ops with multiply-accumulates in a .pte, in its order; empty where the file does not say."""
    data: dict[str, Any] = json.loads(read_metadata(path) or "{}")
    names = {int(key): str(value) for key, value in data.get("modules", {}).items()}
    if not names:
        return []
    with warnings.catch_warnings():
        _quiet()
        from edgefold.export.inspectors import executorch

        return [op.module for op in executorch.read(path, names).ops if op.macs]


def _quiet() -> None:
    """ExecuTorch reads its package data in an old way at its first import, and says so."""
    warnings.simplefilter("ignore", DeprecationWarning)
