"""What a runtime makes of a model file: which ops it runs, in integers or in float, accelerated or not."""

from __future__ import annotations

import json
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
    precision, _ = _metadata(path)
    return summarize(path.name, format_of(path), precision, path.stat().st_size, read(path))


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


def _metadata(path: Path) -> tuple[Precision | None, dict[int, str]]:
    text = read_metadata(path)
    if text is None:
        return None, {}
    try:
        data = json.loads(text)
        return Precision(data["precision"]), {int(key): str(value) for key, value in data.get("modules", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the Edgefold metadata in '{path}' cannot be read ({error}); export it again with this version"
        ) from error
