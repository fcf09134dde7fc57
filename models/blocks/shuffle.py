"""Channel shuffle and the units around it (ShuffleNet, Zhang et al., CVPR 2018; V2, Ma et al., ECCV 2018).

The shuffle is a permutation of the channels: (G, C/G) is transposed to (C/G, G), so that output g·… of each group reaches every
group of the next layer. It has no weights and should cost nothing once exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    IntPair,
    check_channels,
    check_divides,
    check_geometry,
    check_positive,
    pair,
)
from edgefold.models.blocks.init import kaiming


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> the same with channel g·(C/G) + i moved to i·G + g."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ChannelShuffle(nn.Module):
    """`channel_shuffle` as a module.

    Raises:
        UsageError: ``groups`` is below 1.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        check_positive("ChannelShuffle", "groups", groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return channel_shuffle(x, self.groups)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNet: group 1×1, BN, ReLU, shuffle, depthwise K×K, BN, group 1×1, BN; added to its input, then ReLU.

    At a stride above 1 the input is pooled and concatenated in place of added, so that the branch has N − M outputs. The hidden
    width is a quarter of N, rounded to a multiple of G. Initialisation: Kaiming, gain 1 where no ReLU follows.

    Args:
        in_channels: M.
        out_channels: N; equal to M at stride 1, above M otherwise.
        kernel_size: K of the depthwise convolution, odd.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution; by default it keeps the size at stride 1.
        dilation: of the depthwise convolution.
        bias: of the convolutions; each has a norm after it, so that there is none by default.
        groups: G, of the 1×1 convolutions.

    Raises:
        UsageError: impossible numbers of channels, or ``groups`` does not divide them.
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
        groups: int = 2,
    ) -> None:
        super().__init__()
        check_channels("ShuffleUnit", in_channels, out_channels)
        check_geometry("ShuffleUnit", kernel_size, stride, padding, dilation)
        self.strided = max(pair(stride)) > 1
        branch = out_channels - in_channels if self.strided else out_channels
        if (self.strided and branch < 1) or (not self.strided and in_channels != out_channels):
            rule = "more than" if self.strided else "equal to"
            raise UsageError(
                f"ShuffleUnit: out_channels is {out_channels} at stride {stride}, expected {rule} in_channels={in_channels}"
            )
        check_divides("ShuffleUnit", ("groups", groups), in_channels=in_channels, branch_channels=branch)
        hidden = max(groups, out_channels // 4 // groups * groups)
        self.expand = nn.Conv2d(in_channels, hidden, 1, groups=groups, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.shuffle = ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, stride, padding, dilation, hidden, bias)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, branch, 1, groups=groups, bias=bias)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride, 1) if self.strided else nn.Identity()
        self.relu2 = nn.ReLU()
        kaiming(self.expand)
        kaiming(self.depthwise, gain=1.0)
        kaiming(self.project, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        y = self.shuffle(self.relu1(self.bn1(self.expand(x))))
        y = self.bn3(self.project(self.bn2(self.depthwise(y))))
        joined = torch.cat([self.pool(x), y], 1) if self.strided else x + y
        out: Tensor = self.relu2(joined)
        return out
