"""How numbers become integers: the parameters of one tensor, and where a graph carries them.

Affine quantization (Jacob et al., CVPR 2018, eq. 1): real = scale * (integer - zero_point), integer in [qmin, qmax].
Activations are per tensor, weights per output channel and symmetric. `Grid` says which integers activations have:
8 bits and a zero point, or 16 bits and none (TFLite's specification of int16x8).

A graph carries its parameters in the ``meta`` of its nodes, under the keys below, so that a rewrite keeps them by copying
``meta``:

* ``Q`` on each node whose output is quantized: a `QParams`. A conv that is fused with the activation after it has none; the
  activation has them.
* ``WEIGHT_SCALE`` on conv and linear nodes: float32 tensor of shape (N,), one scale an output channel (axis 1 of the
  weight of a transposed convolution, which has one in `int8-weight-only` alone).
* ``EXPONENT_BITS`` on conv and linear nodes whose weights are powers of two (see `edgefold.quantize.powers`): an int.
* ``FIXED`` on inputs whose integers are given from outside (camera pixels): a `QParams` that calibration takes as it is.
* ``JOINED_FLOAT`` on concats, and the moves after them, that stay float (see `edgefold.quantize.joins`): ``True``.
* ``DYNAMIC`` on conv and linear nodes whose input is quantized at run time, by its own range.
* ``ROUNDED_WEIGHT`` and ``CORRECTED_BIAS`` on conv and linear nodes of a graph that still has its float parameters: the int8
  weight (see `edgefold.quantize.rounding`) and the float32 bias (see `edgefold.quantize.correct`) that integers take instead.
* ``BRANCH_Q`` on conv nodes that may be lowered to several branches: a `QParams` by the name of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

Q: Final = "edgefold_q"
WEIGHT_SCALE: Final = "edgefold_wscale"
BRANCH_Q: Final = "edgefold_branch_q"
DYNAMIC: Final = "edgefold_dynamic"
EXPONENT_BITS: Final = "edgefold_exponent_bits"
ROUNDED_WEIGHT: Final = "edgefold_rounded_weight"
CORRECTED_BIAS: Final = "edgefold_corrected_bias"
FIXED: Final = "edgefold_fixed_q"
JOINED_FLOAT: Final = "edgefold_joined_float"


@dataclass(frozen=True, slots=True)
class QParams:
    """The quantization of one tensor: real = scale * (integer - zero_point), integer in [qmin, qmax]."""

    scale: float
    zero_point: int
    qmin: int = -128
    qmax: int = 127

    @property
    def dtype(self) -> torch.dtype:
        """The smallest signed type that holds the integers."""
        return torch.int8 if self.qmin >= -128 and self.qmax <= 127 else torch.int16


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that activations have, and whether real 0 is always integer 0."""

    qmin: int
    qmax: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return self.qmax - self.qmin + 1


INT8: Final = Grid(-128, 127, symmetric=False)
INT16: Final = Grid(-32768, 32767, symmetric=True)
GRIDS: Final = {8: INT8, 16: INT16}  # by the bits of activations
