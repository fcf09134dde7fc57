"""Convolutions that are locally connected over channels: each output sees a few neighbouring inputs.

Output c sees G of the M inputs, in one of two patterns, both wrapping around at the end:

    strided   (c·G + g) mod M,              g = 0 … G−1: windows side by side
    sliding   (⌊c·M/N⌋ + g − ⌊G/2⌋) mod M,  g = 0 … G−1: overlapping windows around the output's own place

Windows that overlap, or leave and re-enter the channels, are no group convolution. Parameters without bias: N·G·K².

Windows over neighbouring channels are those of the channel-wise convolution (ChannelNets, Gao et al., NeurIPS 2018), which has
one kernel for all windows; here each output has its own, as in locally connected layers (LeCun, 1989).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    IntPair,
    check_channels,
    check_convolution,
    check_name,
    check_places,
    check_positive,
)
from edgefold.models.blocks.masked import MaskedConv2d

WINDOWS: Final = ("sliding", "strided")


def channel_local_inputs(in_channels: int, out_channels: int, group_size: int, window: str = "strided") -> Tensor:
    """The inputs of each output, int64 (N, G).

    Raises:
        UsageError: ``group_size`` is not in 1 … M, or there is no such window.
    """
    check_channels("ChannelLocalConv2d", in_channels, out_channels)
    check_positive("ChannelLocalConv2d", "group_size", group_size)
    if group_size > in_channels:
        raise UsageError(f"ChannelLocalConv2d: group_size is {group_size}, expected at most in_channels={in_channels}")
    check_name("window of ChannelLocalConv2d", window, WINDOWS)
    outputs = torch.arange(out_channels).unsqueeze(1)  # (N, 1)
    first = outputs * group_size if window == "strided" else outputs * in_channels // out_channels - group_size // 2
    return (first + torch.arange(group_size)) % in_channels


def channel_local_parameters(out_channels: int, kernel_size: IntPair, group_size: int, bias: bool = False) -> int:
    """N·G·K², plus N with a bias; of any number of inputs from G on."""
    check_positive("ChannelLocalConv2d", "group_size", group_size)
    taps = check_convolution("ChannelLocalConv2d", group_size, out_channels, kernel_size, bias=bias).taps
    return out_channels * group_size * taps + (out_channels if bias else 0)


def channel_local_macs(out_channels: int, kernel_size: IntPair, group_size: int, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W')."""
    places = check_places("ChannelLocalConv2d", "output_size", output_size)
    return channel_local_parameters(out_channels, kernel_size, group_size) * places


class ChannelLocalConv2d(MaskedConv2d):
    """A convolution locally connected over channels, held as a masked dense weight.

    Initialisation: that of `MaskedConv2d`, Kaiming normal for ReLU with the fan-in G·K²; the bias zero.

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: K or (Kh, Kw).
        stride: s or (sh, sw).
        padding: zeros on each side.
        dilation: of the kernels.
        bias: whether there is a bias.
        group_size: G, the inputs that an output sees.
        window: ``strided`` or ``sliding``, see the module docstring.

    Raises:
        UsageError: an argument is out of range, or there is no such window.
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
        group_size: int = 1,
        window: str = "strided",
    ) -> None:
        inputs = channel_local_inputs(in_channels, out_channels, group_size, window)
        kernel = check_convolution("ChannelLocalConv2d", in_channels, out_channels, kernel_size).kernel_size
        seen = torch.zeros(out_channels, in_channels, dtype=torch.bool).scatter_(
            1, inputs, torch.tensor(True).expand(inputs.shape)
        )
        mask = seen[:, :, None, None].expand(-1, -1, *kernel)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias, mask=mask)
        self.group_size = group_size
        self.window = window

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, group_size={self.group_size}, window={self.window!r}"
