"""The unit of ShuffleNet V2 (Ma et al., ECCV 2018): split, transform one half, concatenate, shuffle.

At stride 1 half of the channels pass unchanged. At a higher stride both halves are computed from the whole input: one by a
depthwise and a 1×1 convolution, the other by 1×1, depthwise, 1×1. All inner widths are N/2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_channels, check_divides, check_geometry, pair
from edgefold.models.blocks.init import kaiming
from edgefold.models.blocks.shuffle import ChannelShuffle


class ShuffleUnitV2(nn.Module):
    """A ShuffleNet V2 unit. Initialisation: Kaiming, gain 1 where no ReLU follows.

    Args:
        in_channels: M; equal to N at stride 1.
        out_channels: N, even.
        kernel_size: K of the depthwise convolutions, odd.
        stride: of the depthwise convolutions.
        padding: of the depthwise convolutions; by default it keeps the size at stride 1.
        dilation: of the depthwise convolutions.
        bias: of the convolutions; each has a norm after it, so that there is none by default.

    Raises:
        UsageError: N is odd, or M differs from N at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: IntPair = 1,
        dilation: IntPair = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_channels("ShuffleUnitV2", in_channels, out_channels)
        check_divides("ShuffleUnitV2", ("the number of branches", 2), out_channels=out_channels)
        check_geometry("ShuffleUnitV2", kernel_size, stride, padding, dilation)
        strided = max(pair(stride)) > 1
        if not strided and in_channels != out_channels:
            raise UsageError(f"ShuffleUnitV2: out_channels is {out_channels} at stride 1, expected in_channels={in_channels}")
        half = out_channels // 2
        self.passing = 0 if strided else half  # channels that pass unchanged

        def depthwise(channels: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, channels, bias)
            kaiming(conv, gain=1.0)
            return [conv, nn.BatchNorm2d(channels)]

        def pointwise(channels: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels, half, 1, bias=bias)
            kaiming(conv)
            return [conv, nn.BatchNorm2d(half), nn.ReLU()]

        source = in_channels if strided else half
        self.branch = nn.Sequential(*pointwise(source), *depthwise(half), *pointwise(half))
        self.shortcut = nn.Sequential(*depthwise(in_channels), *pointwise(in_channels)) if strided else nn.Identity()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        kept, source = (x[:, : self.passing], x[:, self.passing :]) if self.passing else (x, x)
        y: Tensor = self.shuffle(torch.cat([self.shortcut(kept), self.branch(source)], 1))
        return y
