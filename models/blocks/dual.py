"""DualConv (Zhong et al., IEEE TNNLS 2023, arXiv:2202.07481): a group convolution and a 1×1 convolution, summed.

    y = W_G ⋆_G x + v · x + b

Unlike in HetConv, every output sees every input through the 1×1 part, also those of its own group. Parameters without bias:
N·M·K²/G + N·M; the cost ratio to a standard convolution is 1/G + 1/K².
"""

from __future__ import annotations

from torch import Tensor, nn

from edgefold.models.blocks.arguments import (
    Geometry,
    IntPair,
    centre_offset,
    check_convolution,
    check_divides,
    check_places,
    crop,
)
from edgefold.models.blocks.init import kaiming


def dual_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, groups: int, bias: bool = False) -> int:
    """N·M·K²/G + N·M, plus N with a bias."""
    taps = _checked(in_channels, out_channels, kernel_size, groups, bias=bias).taps
    return out_channels * (in_channels // groups) * taps + out_channels * in_channels + (out_channels if bias else 0)


def dual_macs(in_channels: int, out_channels: int, kernel_size: IntPair, groups: int, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W')."""
    places = check_places("DualConv2d", "output_size", output_size)
    return dual_parameters(in_channels, out_channels, kernel_size, groups) * places


def _checked(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    groups: int,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    bias: bool = False,
) -> Geometry:
    """The geometry, once all arguments are known to be possible."""
    geometry = check_convolution("DualConv2d", in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
    check_divides("DualConv2d", ("groups", groups), in_channels=in_channels, out_channels=out_channels)
    centre_offset("DualConv2d", geometry)  # refuses even kernels
    return geometry


class DualConv2d(nn.Module):
    """Group K×K convolution plus 1×1 convolution; the 1×1 kernel reads where the centre of the K×K kernel does.

    Initialisation: both branches Kaiming with gain 1, so that their sum has the variance that Kaiming's √2 gives a single
    convolution before a ReLU. The bias is the group branch's.

    Raises:
        UsageError: an argument is out of range, the kernel has an even side, or ``groups`` does not divide the channels.
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
        groups: int = 2,
    ) -> None:
        super().__init__()
        geometry = _checked(in_channels, out_channels, kernel_size, groups, stride, padding, dilation, bias)
        offset = centre_offset("DualConv2d", geometry)
        self.crop = offset.crop
        self.group = nn.Conv2d(
            in_channels, out_channels, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, groups, bias
        )
        self.point = nn.Conv2d(in_channels, out_channels, 1, geometry.stride, offset.padding, bias=False)
        kaiming(self.group, gain=1.0)
        kaiming(self.point, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        y: Tensor = self.group(x) + self.point(crop(x, self.crop))
        return y
