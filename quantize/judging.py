"""Whether corrected biases and rounded weights are kept, judged on samples that they were not made from.

Rounding errors of a deep network are so unlike from image to image that what 16 images say of a gain strays by some 0.8 dB (a
standard error), which is more than there mostly is to gain: a verdict by its sign refused 12 gains and 7 losses of the 54
steps below. So the samples are weighed against what is known of both methods. Over these steps (one of the methods on one
calibration by 32 images, of five networks with seeded weights and six trained ones) the mean gain in dB on 48 or 128 other
images had a median of 0.29 and quartiles of 0.0 and 0.7, in part from the error of that mean. With such a gain to be expected,
and a mean of m dB over the samples with a standard error of s dB, what is most likely to be gained is above 0 where

    m / s^2 + expected / spread^2 > 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor
from torch.fx import GraphModule

from edgefold.quantize.calibrate import ScaleTable, annotated, output_powers

_EXPECTED_DB: Final = 0.3
_SPREAD_DB: Final = 0.4
_NO_NOISE: Final = 1e-30


def is_kept(graph: GraphModule, candidate: ScaleTable, table: ScaleTable, samples: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether a candidate takes the place of a table: it changes the output, and most likely for the better.

    Args:
        graph: the canonical graph of both tables.
        candidate: the table with corrected biases or rounded weights.
        table: the table without.
        samples: inputs that the candidate was not made from.
    """
    (_, after), (_, before) = (output_powers(annotated(graph, each), samples) for each in (candidate, table))
    return is_likely_gain(before, after)


def is_likely_gain(before: Tensor, after: Tensor) -> bool:
    """Whether less noise is to be expected of new images too; see above.

    Args:
        before: the power of the noise at the output for each sample, float64 (samples,).
        after: the same of the candidate. Of one sample, or of samples without scatter, the sign decides.
    """
    gains = 10 * (before.clamp_min(_NO_NOISE) / after.clamp_min(_NO_NOISE)).log10()
    error = float(gains.var()) / len(gains) if len(gains) > 1 else 0.0  # of the mean, dB^2
    return float(gains.mean()) + error * _EXPECTED_DB / _SPREAD_DB**2 > 0
