"""The seam of the emitters: the protocol, its options, and the table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, get_args

from edgefold.artifact import Artifact, Format, Precision
from edgefold.errors import UnsupportedError, UsageError, unknown_name
from edgefold.export.program import LoweredProgram
from edgefold.quantize.pixels import PixelInput

IoType = Literal["float32", "int8", "uint8"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """What the ends of a file look like.

    ``io`` is the element type of the quantized inputs and outputs (``int8`` and ``uint8`` need an integer precision),
    ``layout`` the order of 4-D inputs and outputs; ``force`` allows an existing file to be replaced. ``pixels`` is set when the
    graph takes camera pixels, and then ``io`` is ``uint8``.

    Raises:
        UsageError: an unknown name, or pixels in another type than uint8.
    """

    io: IoType = "float32"
    layout: Layout = "nchw"
    force: bool = False
    pixels: PixelInput | None = None

    def __post_init__(self) -> None:
        if self.io not in get_args(IoType):
            raise unknown_name("I/O type", self.io, get_args(IoType))
        if self.layout not in get_args(Layout):
            raise unknown_name("layout", self.layout, get_args(Layout))
        if self.pixels is not None and self.io != "uint8":
            raise UsageError(f"the network takes camera pixels, which are uint8, but --io is {self.io}; use --io uint8")


class Emitter(Protocol):
    """Writes one format."""

    format: ClassVar[Format]

    def emit(self, lowered: LoweredProgram, options: EmitOptions, out: Path) -> Artifact:
        """Write ``lowered`` to ``out``, which appears whole or not at all.

        Raises:
            UsageError: options that the precision does not allow.
            UnsupportedError: an op or a precision that the format cannot express; the op is named.
            RuntimeFailure: the converter broke.
            OutputError: ``out`` exists already or cannot be written.
        """
        ...


def get_emitter(format: Format) -> Emitter:
    """The emitter of a format; its converter is imported when it first emits."""
    return _LOADERS[format]()


def register_emitter(format: Format, loader: Callable[[], Emitter]) -> None:
    """Add a format to the table.

    Raises:
        UsageError: the format has an emitter already.
    """
    if format in _LOADERS:
        raise UsageError(f"format '{format}' has an emitter already; register a format once")
    _LOADERS[format] = loader


def is_static_integer(precision: Precision) -> bool:
    """Whether a precision computes in integers from calibrated scales, so that a file can have integer inputs and outputs."""
    return precision in (Precision.INT8, Precision.INT8_FULL, Precision.INT16X8)


# What every emitter writes.
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_FULL)


def check_options(format: Format, precision: Precision, options: EmitOptions) -> None:
    """Refuses a precision that the format has no form for, and integer ends on a file that does not compute in integers.

    Raises:
        UnsupportedError: the precision.
        UsageError: ``options.io`` does not go with ``precision``.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UnsupportedError(f"precision '{precision}' has no form in {format}, expected one of: {known}")
    if options.io != "float32" and not is_static_integer(precision):
        raise UsageError(
            f"--io {options.io} does not go with precision '{precision}', whose ends are float; use --precision int8"
        )


def _onnx() -> Emitter:
    from edgefold.export.emitters.onnx import OnnxEmitter

    return OnnxEmitter()


def _tflite() -> Emitter:
    from edgefold.export.emitters.tflite import TfliteEmitter

    return TfliteEmitter()


def _executorch() -> Emitter:
    from edgefold.export.emitters.executorch import ExecutorchEmitter

    return ExecutorchEmitter()


_LOADERS: dict[Format, Callable[[], Emitter]] = {}
register_emitter(Format.ONNX, _onnx)
register_emitter(Format.TFLITE, _tflite)
register_emitter(Format.EXECUTORCH, _executorch)
