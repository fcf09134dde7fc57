"""The precisions as one table: what each makes of weights and activations, which formats hold it, and how it is checked.

Whatever depends on a precision asks this table; a new scheme is a line here and the code that rounds its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgefold.artifact import Format, Precision
from edgefold.errors import UnsupportedError

DEFAULT_EXPONENT_BITS: Final = 4  # of log2 weights


class Activations(StrEnum):
    """What activations are when a file runs."""

    FLOAT = "float"
    STATIC = "integers with scales from calibration"
    DYNAMIC = "integers with scales found at run time"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One precision.

    ``rounded`` says whether the weights are other numbers than those of the float network. ``integer_only`` files hold no
    float op, their ends included. ``tolerance`` is the largest error against torch, as a share of the output's range, of a file
    that computes in float; ``None`` where the integers are the measure: at least ``sqnr_db`` against the fake-quantized graph.
    ``missing`` says why other formats have none, ``note`` what a user should know before choosing it.
    """

    weight_bytes: int
    activations: Activations
    activation_bits: int = 8
    rounded: bool = True
    integer_only: bool = False
    tolerance: float | None = None
    sqnr_db: float = 30.0
    formats: tuple[Format, ...] = tuple(Format)
    missing: str = ""
    note: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether activations need ranges from calibration data."""
        return self.activations is Activations.STATIC

    @property
    def integer_ends(self) -> bool:
        """Whether files of it can have inputs and outputs of 8 bits."""
        return self.calibrated and self.activation_bits == 8

    @property
    def float_joins(self) -> bool:
        """Whether values may be joined in float before an output that is float itself."""
        return self.trainable and not self.integer_only

    @property
    def trainable(self) -> bool:
        """Whether the scales of a training as INT8 are those of its files."""
        return self.integer_ends and bool(self.formats)

    @property
    def integer(self) -> bool:
        """Whether multiply-accumulates are computed in integers."""
        return self.activations is not Activations.FLOAT


SCHEMES: Final[dict[Precision, Scheme]] = {
    Precision.FP32: Scheme(4, Activations.FLOAT, rounded=False, tolerance=1e-4),
    # Ten bits of mantissa through tens of layers.
    Precision.FP16: Scheme(2, Activations.FLOAT, rounded=False, tolerance=1e-2),
    Precision.INT8: Scheme(1, Activations.STATIC),
    Precision.INT8_FULL: Scheme(1, Activations.STATIC, integer_only=True),
    Precision.INT8_DYNAMIC: Scheme(1, Activations.DYNAMIC),
    Precision.INT8_WEIGHT_ONLY: Scheme(
        1,
        Activations.FLOAT,
        tolerance=1e-4,
        formats=(Format.ONNX, Format.TFLITE),
        missing="XNNPACK takes int8 weights with integer activations only, and float ones would not be smaller",
    ),
    Precision.INT16X8: Scheme(
        1,
        Activations.STATIC,
        activation_bits=16,
        # The kernels scale their 64-bit sums by a factor of 15 bits.
        sqnr_db=50.0,
        formats=(Format.TFLITE,),
        missing="only TFLite has kernels that multiply 16-bit activations with 8-bit weights",
        note="int16x8 runs in TFLite's reference kernels on CPUs, far slower than fp32 and int8 there: take it for accuracy, "
        "or for a chip that has 16-bit activations",
    ),
    Precision.LOG2: Scheme(
        1,
        Activations.STATIC,
        formats=(),
        missing="it is a study in torch, as no runtime has kernels that shift; 'edgefold quantize --scheme log2' shows its error",
    ),
}


def scheme_of(precision: Precision) -> Scheme:
    """The table's line of a precision."""
    return SCHEMES[precision]


def check_format(format: Format, precision: Precision) -> Scheme:
    """The scheme of a precision, if the format has a form for it.

    Raises:
        UnsupportedError: it has none.
    """
    scheme = SCHEMES[precision]
    if format not in scheme.formats:
        known = ", ".join(name for name, other in SCHEMES.items() if format in other.formats)
        raise UnsupportedError(f"precision '{precision}' has no form in {format} ({scheme.missing}), expected one of: {known}")
    return scheme


def combinations(formats: Sequence[Format], precisions: Sequence[Precision]) -> tuple[tuple[Format, Precision], ...]:
    """Each format with each precision that it has a form for.

    Raises:
        UnsupportedError: a precision is in none of the formats.
    """
    found = tuple((format, precision) for format in formats for precision in precisions if format in SCHEMES[precision].formats)
    for precision in precisions:
        if formats and precision not in {held for _, held in found}:
            check_format(formats[0], precision)
    return found


def left_out(formats: Sequence[Format], precisions: Sequence[Precision]) -> tuple[str, ...]:
    """A sentence for each precision that some of the formats have no form for."""
    found = []
    for precision in precisions:
        without = [format.value for format in formats if format not in SCHEMES[precision].formats]
        if without:
            found.append(f"There is no {precision} in {' and '.join(without)}: {SCHEMES[precision].missing}.")
    return tuple(found)
