"""The seam of the emitters: the protocol, its options, and the table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, get_args

from edgefold.artifact import MAX_BATCH, Artifact, Format, Precision
from edgefold.errors import UsageError, unknown_name
from edgefold.export.program import LoweredProgram
from edgefold.quantize.pixels import PixelInput
from edgefold.schemes import check_format

IoType = Literal["float32", "int8", "uint8"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """What the ends of a file look like.

    ``io`` is the element type of the quantized inputs and outputs (``int8`` and ``uint8`` need a precision with 8-bit activations
    from calibration, and of ``int8-full`` it is ``int8`` even where it says ``float32``), ``layout`` the order of 4-D inputs and
    outputs; ``force`` allows an existing file to be replaced. ``pixels`` is set when the graph takes camera pixels, and then
    ``io`` is ``uint8``. With ``dynamic_batch`` the file takes any batch of at least 1; ExecuTorch plans its memory for
    ``max_batch``, the other formats have no limit. The integers of an ONNX file are exact on ARM, on x86 CPUs of this machine's
    kind, and on every x86 CPU if it is ``portable``. ``random_calibration`` marks a file whose scales come from random data.

    Raises:
        UsageError: an unknown name, pixels in another type than uint8, or a ``max_batch`` below 2.
    """

    io: IoType = "float32"
    layout: Layout = "nchw"
    force: bool = False
    pixels: PixelInput | None = None
    dynamic_batch: bool = False
    max_batch: int = MAX_BATCH
    portable: bool = False
    random_calibration: bool = False

    def __post_init__(self) -> None:
        if self.io not in get_args(IoType):
            raise unknown_name("I/O type", self.io, get_args(IoType))
        if self.layout not in get_args(Layout):
            raise unknown_name("layout", self.layout, get_args(Layout))
        if self.pixels is not None and self.io != "uint8":
            raise UsageError(f"the network takes camera pixels, which are uint8, but --io is {self.io}; use --io uint8")
        if self.max_batch < 2:
            raise UsageError(f"the largest batch is {self.max_batch}, expected at least 2; leave the batch fixed for one sample")


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


def checked_options(format: Format, precision: Precision, options: EmitOptions) -> EmitOptions:
    """The options as they are meant with a precision: a file that is integer throughout has int8 ends unless they are uint8.

    Raises:
        UnsupportedError: the format has no form for the precision.
        UsageError: ``options.io`` does not go with ``precision``.
    """
    scheme = check_format(format, precision)
    if options.io != "float32" and not scheme.integer_ends:
        raise UsageError(
            f"--io {options.io} does not go with precision '{precision}', whose ends are float; use --precision int8"
        )
    return replace(options, io="int8") if scheme.integer_only and options.io == "float32" else options


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
