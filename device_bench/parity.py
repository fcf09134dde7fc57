"""The outputs of a benchmarked run against a reference: a fast wrong answer is no result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.artifact import Precision, TensorSpec
from edgefold.results import OutputParity
from edgefold.schemes import scheme_of

Array = NDArray[Any]

# Of the output's range, at least; kernels of another CPU add in another order.
FLOAT_TOLERANCE = 1e-3
QUANTIZED_SQNR_DB = 30.0
# Where all values of an output lie within a few steps, SQNR says little; then this many steps are allowed.
QUANTIZED_STEPS = 1.0


def output_parity(spec: TensorSpec, output: Array, reference: Array) -> OutputParity:
    """One output, as real numbers in torch's layout, against its reference of the same shape."""
    y, ref = output.astype(np.float64), reference.astype(np.float64)
    error = y - ref
    largest = float(np.abs(error).max(initial=0.0))
    extent = float(np.ptp(ref)) if ref.size else 0.0
    signal, power = float(np.sum(ref**2)), float(np.sum(error**2))
    steps = np.abs(np.rint(error / spec.scale)) if spec.scale else None
    return OutputParity(
        name=spec.name,
        max_abs_error=largest,
        max_relative_error=largest / extent if extent else largest,
        sqnr_db=None if power == 0 else float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / power)),
        max_steps=None if steps is None else float(steps.max(initial=0.0)),
        share_different=None if steps is None else float(np.mean(steps > 0)),
    )


def is_right(parity: OutputParity, precision: Precision | None) -> bool:
    """Whether an output is close enough to call it the same computation."""
    tolerance = scheme_of(precision or Precision.FP32).tolerance
    if parity.max_steps is None and tolerance is not None:
        return parity.max_relative_error <= max(tolerance, FLOAT_TOLERANCE)
    if parity.max_steps is not None and parity.max_steps <= QUANTIZED_STEPS:
        return True
    return parity.sqnr_db is None or parity.sqnr_db >= QUANTIZED_SQNR_DB


def compare_outputs(
    specs: Sequence[TensorSpec], outputs: Sequence[Array], reference: Sequence[Array]
) -> tuple[OutputParity, ...]:
    """Every output against its reference; empty where their numbers or shapes differ."""
    if not len(specs) == len(outputs) == len(reference):
        return ()
    triples = list(zip(specs, outputs, reference, strict=True))
    if any(output.shape != ref.shape for _, output, ref in triples):
        return ()
    return tuple(output_parity(spec, output, ref) for spec, output, ref in triples)
