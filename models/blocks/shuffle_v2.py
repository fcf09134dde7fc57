"""The unit of ShuffleNet V2 (Ma et al., ECCV 2018): split, transform one half, concatenate, shuffle.

At stride 1 half of the channels pass unchanged. At a higher stride both halves are computed from the whole input: one by a
depthwise and a 1×1 convolution, the other by 1×1, depthwise, 1×1. All inner widths are N/2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    Geometry,
    IntPair,
    check_channels,
    check_flag,
    check_joinable,
    check_places,
    unit_geometry,
)
from edgefold.models.blocks.init import kaiming
from edgefold.models.blocks.shuffle import ChannelShuffle


def _checked(
    in_channels: int, out_channels: int, kernel_size: IntPair, stride: IntPair, padding: IntPair | None, dilation: IntPair
) -> Geometry:
    """The geometry, once all arguments are known to be possible."""
    block = "ShuffleUnitV2"
    check_channels(block, in_channels, out_channels)
    if out_channels % 2:
        raise UsageError(f"{block}: out_channels is {out_channels}, expected an even number, half for each branch")
    geometry = unit_geometry(block, kernel_size, stride, padding, dilation)
    if not geometry.strided:
        if in_channels != out_channels:
            raise UsageError(f"{block}: out_channels is {out_channels} at stride 1, expected in_channels={in_channels}")
        check_joinable(block, geometry, "the half that passes")
    return geometry


def shuffle_unit_v2_parameters(
    in_channels: int, out_channels: int, kernel_size: IntPair, stride: IntPair, bias: bool = False
) -> int:
    """Without the norms', with h = N/2: h² + h·K² + h² at stride 1; above it h·M + h·K² + h² + M·K² + M·h.

    A bias adds 3·h at stride 1 and 4·h + M above it.
    """
    geometry = _checked(in_channels, out_channels, kernel_size, stride, None, 1)
    check_flag("ShuffleUnitV2", "bias", bias)
    half = out_channels // 2
    if not geometry.strided:
        return half * (2 * half + geometry.taps + (3 if bias else 0))
    weights = half * (in_channels + geometry.taps + half) + in_channels * (geometry.taps + half)
    return weights + (4 * half + in_channels if bias else 0)


def shuffle_unit_v2_macs(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
) -> int:
    """Multiply-accumulates of the convolutions for one sample; the branch's first works before the stride, the rest after."""
    total = shuffle_unit_v2_parameters(in_channels, out_channels, kernel_size, stride)
    half = out_channels // 2
    strided = _checked(in_channels, out_channels, kernel_size, stride, None, 1).strided
    first = half * (in_channels if strided else half)
    before = check_places("ShuffleUnitV2", "input_size", input_size)
    return first * before + (total - first) * check_places("ShuffleUnitV2", "output_size", output_size)


class ShuffleUnitV2(nn.Module):
    """A ShuffleNet V2 unit. Initialisation: Kaiming, gain 1 where no ReLU follows.

    Args:
        in_channels: M; equal to N at stride 1.
        out_channels: N, even.
        kernel_size: K of the depthwise convolutions; odd at stride 1.
        stride: of the depthwise convolutions.
        padding: of the depthwise convolutions; by default d(K−1)/2, which keeps the size at stride 1.
        dilation: of the depthwise convolutions.
        bias: of the convolutions; each has a norm after it, so that there is none by default.

    Raises:
        UsageError: an argument is out of range, N is odd, or at stride 1 M differs from N or the padding changes the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: IntPair | None = None,
        dilation: IntPair = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        geometry = _checked(in_channels, out_channels, kernel_size, stride, padding, dilation)
        check_flag("ShuffleUnitV2", "bias", bias)
        strided = geometry.strided
        half = out_channels // 2
        self.passing = 0 if strided else half  # channels that pass unchanged

        def depthwise(channels: int) -> list[nn.Module]:
            conv = nn.Conv2d(
                channels, channels, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, channels, bias
            )
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
