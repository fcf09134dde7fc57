"""What the export side knows of a file's ops, as the bench needs it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Work:
    """What one op of a file has to do. ``module`` is empty where the file does not say; ``moved_bytes`` of an ONNX node are
    those of its weights."""

    module: str
    macs: int
    moved_bytes: int
    delegated: bool
    op: str = ""  # what the file calls it


def work_of(path: Path) -> list[Work]:
    """Every op of a .tflite or .pte in its order; empty where the file cannot be inspected.

    The names of the tensors of a .tflite of another maker are no modules; they still tell which op is meant.
    """
    with warnings.catch_warnings():
        _quiet()
        from edgefold.export.inspectors import executorch, tflite

        try:
            if format_of(path) is Format.TFLITE:
                ops = tflite.read(path).ops
            else:
                data: dict[str, Any] = json.loads(read_metadata(path) or "{}")
                ops = executorch.read(path, {int(key): str(value) for key, value in data.get("modules", {}).items()}).ops
        except EdgefoldError:
            return []
    return [Work(op.module, op.macs, op.moved_bytes, op.accelerated, op.name) for op in ops]


def work_by_name(path: Path) -> dict[str, Work]:
    """The nodes of an .onnx by the names under which ONNX Runtime may tell of them."""
    from edgefold.export.inspectors import onnx

    return {name: Work(*work, delegated=False) for name, work in onnx.work_by_name(path).items()}


def _quiet() -> None:
    """ExecuTorch reads its package data in an old way at its first import, and says so."""
    warnings.simplefilter("ignore", DeprecationWarning)
