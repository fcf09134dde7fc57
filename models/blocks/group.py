"""The group convolution (AlexNet, Krizhevsky et al., NeurIPS 2012; ResNeXt, Xie et al., CVPR 2017).

The input and output channels are cut into G groups; output group g sees input group g only. G divides M and N.
Parameters without bias: N·M·K²/G. The saving is G times, in weights and in multiply-accumulates.
"""

from __future__ import annotations

from torch import nn

from edgefold.models.blocks.arguments import IntPair, check_convolution, check_divides, check_places
from edgefold.models.blocks.init import kaiming


def group_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, groups: int, bias: bool = False) -> int:
    """N·M·K²/G, plus N with a bias."""
    taps = check_convolution("GroupConv2d", in_channels, out_channels, kernel_size, bias=bias).taps
    check_divides("GroupConv2d", ("groups", groups), in_channels=in_channels, out_channels=out_channels)
    return out_channels * (in_channels // groups) * taps + (out_channels if bias else 0)


def group_macs(in_channels: int, out_channels: int, kernel_size: IntPair, groups: int, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W')."""
    places = check_places("GroupConv2d", "output_size", output_size)
    return group_parameters(in_channels, out_channels, kernel_size, groups) * places


class GroupConv2d(nn.Conv2d):
    """A convolution in ``groups`` groups.

    Initialisation: Kaiming normal for ReLU with the fan-in K²·M/G of a group; the bias zero.

    Raises:
        UsageError: an argument is out of range, or ``groups`` does not divide both channel counts.
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
        groups: int = 1,
    ) -> None:
        geometry = check_convolution("GroupConv2d", in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        check_divides("GroupConv2d", ("groups", groups), in_channels=in_channels, out_channels=out_channels)
        super().__init__(
            in_channels, out_channels, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, groups, bias
        )
        kaiming(self)
