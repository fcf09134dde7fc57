"""What a runtime makes of a model file: which ops it runs, in integers or in float, accelerated or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from edgefold.artifact import Format, Precision
from edgefold.errors import ArtifactError
from edgefold.export.inspectors.base import Inspection, Reading, summarize
from edgefold.runtime.container import format_of, read_metadata

__all__ = ["Inspection", "inspect", "read"]


def inspect(path: Path | str) -> Inspection:
    """Read a file of any format, of ours or of another maker.

    ONNX is counted in the graph that ONNX Runtime makes of it, TFLite in its flatbuffer with LiteRT's XNNPACK delegate applied,
    ExecuTorch in the program with its XNNPACK delegates opened. A runtime is asked in a process of its own.

    Raises:
        ArtifactError: no such file, not a model file, or one that its runtime refuses.
        RuntimeFailure: the runtime did not answer in time.
    """
    path = Path(path)
    precision, _, random = _metadata(path)
    found = summarize(path.name, format_of(path), precision, path.stat().st_size, read(path))
    return replace(found, random_calibration=random)


def read(path: Path) -> Reading:
    """The ops of a file one by one; see `inspect`.

    Raises:
        ArtifactError: as `inspect`.
        RuntimeFailure: as `inspect`.
    """
    match format_of(path):
        case Format.ONNX:
            from edgefold.export.inspectors import onnx

            return onnx.read(path)
        case Format.TFLITE:
            from edgefold.export.inspectors import tflite

            return tflite.read(path)
        case Format.EXECUTORCH:
            from edgefold.export.inspectors import executorch

            return executorch.read(path, _metadata(path)[1])


def _metadata(path: Path) -> tuple[Precision | None, dict[int, str], bool]:
    """What the file says of itself: precision, the module of each debug handle, and whether its scales are from random data."""
    text = read_metadata(path)
    if text is None:
        return None, {}, False
    try:
        data = json.loads(text)
        modules = {int(key): str(value) for key, value in data.get("modules", {}).items()}
        return Precision(data["precision"]), modules, data.get("calibration") == "random"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the Edgefold metadata in '{path}' cannot be read ({error}); export it again with this version"
        ) from error
