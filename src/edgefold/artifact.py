"""One file that a phone can load, and what its inputs and outputs are."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from edgefold.errors import OutputError

# The samples at once that ExecuTorch plans its memory for, and that a file which takes any number of them is given.
MAX_BATCH = 64


class Format(StrEnum):
    """A file format, and with it the runtime that loads it."""

    ONNX = "onnx"
    TFLITE = "tflite"
    EXECUTORCH = "executorch"

    @property
    def suffix(self) -> str:
        """The suffix of the format's files, with the dot."""
        return {"onnx": ".onnx", "tflite": ".tflite", "executorch": ".pte"}[self.value]


class Precision(StrEnum):
    """How the numbers in an artifact are held: the scheme it was quantized with, or a float type."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_FULL = "int8-full"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT16X8 = "int16x8"
    LOG2 = "log2"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an artifact, as the file itself declares it.

    ``shape`` is the file's own; ``-1`` stands for a dynamic dimension. ``layout`` is ``nchw`` or ``nhwc`` for
    4-D images and the plain order of torch (``torch``) for all else. ``scale`` and ``zero_point`` are set for integer tensors:
    real = scale * (integer - zero_point). ``pixel_mean`` and ``pixel_std``, one a channel, are set for an input of camera pixels,
    where the network's own input is (pixel - pixel_mean) / pixel_std. ``max_batch`` is the most samples that a dynamic first
    dimension takes, where the format has a limit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "torch"
    scale: float | None = None
    zero_point: int | None = None
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    max_batch: int | None = None

    @property
    def shape_text(self) -> str:
        """The shape for readers, e.g. ``any×3×32×32``."""
        return "×".join("any" if size < 0 else str(size) for size in self.shape)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """The spec that a file's metadata holds, where sequences are lists."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file that a phone can load."""

    path: Path
    format: Format
    precision: Precision
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dynamic_batch(self) -> bool:
        """Whether the file takes any number of samples at once."""
        return bool(self.inputs) and self.inputs[0].shape[:1] == (-1,)

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside ``out`` that becomes ``out`` when the block ends well and vanishes otherwise.

    Raises:
        OutputError: ``out`` exists and ``force`` is not set, or its folder cannot be written.
    """
    if out.exists() and not force:
        raise OutputError(f"output '{out}' exists already; choose another name or give --force")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.stem}.", suffix=out.suffix, dir=out.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"output '{out}' cannot be written: {error.strerror}; choose a folder that you may write to") from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; what ships gets the permissions of an ordinary new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
