"""The order in which a TFLite model is rewritten."""

from __future__ import annotations

from collections.abc import Sequence

from edgefold.artifact import Precision
from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.requantize import REQUANTIZE
from edgefold.export.passes.tflite_columns import COLUMNS_AS_CHANNELS
from edgefold.export.passes.tflite_half_weights import HALF_WEIGHTS
from edgefold.export.passes.tflite_integer_moves import INTEGER_MOVES
from edgefold.export.passes.tflite_integer_weights import integer_weights
from edgefold.export.passes.tflite_model import TfliteModel
from edgefold.export.passes.tflite_names import NAME_BY_MODULE
from edgefold.export.passes.tflite_pads import PADS_IN_CONVS
from edgefold.export.passes.tflite_wide_biases import WIDE_BIASES
from edgefold.quantize.weights import RoundedWeight
from edgefold.schemes import scheme_of


def pipeline(precision: Precision, weights: Sequence[RoundedWeight], *, wide: bool = False) -> tuple[GraphPass[TfliteModel], ...]:
    """The passes of a precision.

    ``weights`` are those that shall be integers beside float activations; ``wide`` makes channels of columns.
    """
    if weights:
        return (integer_weights(weights, widened=not scheme_of(precision).integer), PADS_IN_CONVS, NAME_BY_MODULE)
    if scheme_of(precision).activation_bits == 16:
        return (INTEGER_MOVES, PADS_IN_CONVS, WIDE_BIASES, NAME_BY_MODULE)
    if scheme_of(precision).calibrated:
        return (REQUANTIZE, PADS_IN_CONVS, *((COLUMNS_AS_CHANNELS,) if wide else ()), NAME_BY_MODULE)
    return (PADS_IN_CONVS, *((HALF_WEIGHTS,) if precision is Precision.FP16 else ()), NAME_BY_MODULE)
