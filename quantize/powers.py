"""Weights that are powers of two, so that a product is a shift: a study, since no runtime has kernels for them.

Each weight becomes 0 or sign * 2^k. With b bits for the exponent, k is one of 2^b - 1 numbers in each output channel, from that
of its largest weight downwards; the code that is left stands for 0. The format is that of Miyashita et al., "Convolutional Neural
Networks using Logarithmic Data Representation", 2016 (there with one range for a layer); a weight goes to the nearest number
that there is, by the rule of Zhou et al., "Incremental Network Quantization", ICLR 2017:

    |w| becomes 2^k where 3/4 * 2^k <= |w| < 3/2 * 2^k, that is k = floor(log2(4 |w| / 3)),
    and 0 below half of the smallest power.
"""

from __future__ import annotations

import torch
from torch import Tensor


def round_to_powers(weight: Tensor, exponent_bits: int) -> Tensor:
    """The weight (N, ...), float32, with each output channel on its own powers of two.

    Args:
        weight: finite, of any float type.
        exponent_bits: at least 1.
    """
    magnitude = weight.detach().double().abs()
    shape = (-1, *[1] * (weight.ndim - 1))
    largest = _nearest_exponent(magnitude.flatten(1).amax(dim=1)).reshape(shape)
    smallest = largest - (2**exponent_bits - 2)
    # 2^-149 is the smallest float32.
    exponent = torch.maximum(_nearest_exponent(magnitude), smallest).clamp_min(-149)
    power = torch.ldexp(torch.ones_like(magnitude), exponent)
    kept = (magnitude > 0) & (magnitude >= power / 2)
    return torch.where(kept, power * weight.detach().double().sign(), torch.zeros_like(power)).float()


def _nearest_exponent(magnitude: Tensor) -> Tensor:
    """floor(log2(4 x / 3)) of float64 numbers, exactly; of 0 any number."""
    _, exponent = torch.frexp(magnitude * 4 / 3)
    return exponent - 1
