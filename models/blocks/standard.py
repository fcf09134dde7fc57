"""The standard convolution: every output channel sees every input channel.

    y = W ⋆ x + b,  W of shape (N, M, K, K),  H' = ⌊(H + 2p − d(K−1) − 1)/s⌋ + 1

Parameters without bias: N·M·K². Multiply-accumulates: those times H'·W'.
"""

from __future__ import annotations

import math

from torch import nn

from edgefold.models.blocks.arguments import IntPair, check_channels, check_geometry, pair
from edgefold.models.blocks.init import kaiming


def standard_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, bias: bool = False) -> int:
    """N·M·K², plus N with a bias."""
    return out_channels * in_channels * math.prod(pair(kernel_size)) + (out_channels if bias else 0)


def standard_macs(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W')."""
    return standard_parameters(in_channels, out_channels, kernel_size) * math.prod(output_size)


class StandardConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with checked arguments and Kaiming initialisation for ReLU.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = True,
    ) -> None:
        check_channels("StandardConv2d", in_channels, out_channels)
        check_geometry("StandardConv2d", kernel_size, stride, padding, dilation)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)
        kaiming(self)
