"""The precisions as one table: what each makes of weights and activations, which formats hold it, and how it is checked.

Whatever depends on a precision asks this table; a new scheme is a line here and the code that rounds its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgefold.artifact import Format, Precision
from edgefold.errors import UnsupportedError


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
