"""Channel shuffle and the units around it (ShuffleNet, Zhang et al., CVPR 2018; V2, Ma et al., ECCV 2018).

The shuffle is a permutation of the channels: (G, C/G) is transposed to (C/G, G), so that output g·… of each group reaches every
group of the next layer. It has no weights and should cost nothing once exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    Geometry,
    IntPair,
    check_channels,
    check_divides,
    check_flag,
    check_joinable,
    check_places,
    check_positive,
    unit_geometry,
)
from edgefold.models.blocks.init import kaiming


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> the same with channel g·(C/G) + i moved to i·G + g.

    Raises:
        UsageError: G does not divide C, or there are not four dimensions.
    """
    if x.ndim != 4:
        raise UsageError(f"ChannelShuffle: the input has the shape {tuple(x.shape)}, expected (batch, channels, height, width)")
    batch, channels, height, width = x.shape
    check_divides("ChannelShuffle", ("groups", groups), channels=channels)
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def channel_shuffle_parameters(channels: int, groups: int) -> int:
    """None: 0, for all groups that divide the channels."""
    check_positive("ChannelShuffle", "channels", channels)
    check_divides("ChannelShuffle", ("groups", groups), channels=channels)
    return 0


def channel_shuffle_macs(channels: int, groups: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample of (H, W): 0, a permutation computes nothing."""
    check_places("ChannelShuffle", "size", size)
    return channel_shuffle_parameters(channels, groups)


class ChannelShuffle(nn.Module):
    """`channel_shuffle` as a module. Initialisation: none, it has no weights.

    Args:
        groups: G, which divides the channels.

    Raises:
        UsageError: ``groups`` is below 1; when it is called: it does not divide the channels.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        check_positive("ChannelShuffle", "groups", groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return channel_shuffle(x, self.groups)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The checked arguments of a unit: its geometry, and how many channels its branch has within and at its end."""

    geometry: Geometry
    hidden: int
    branch: int

    @classmethod
    def of(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair,
        padding: IntPair | None,
        dilation: IntPair,
        groups: int,
    ) -> Self:
        check_channels("ShuffleUnit", in_channels, out_channels)
        geometry = unit_geometry("ShuffleUnit", kernel_size, stride, padding, dilation)
        strided = geometry.strided
        check_joinable("ShuffleUnit", geometry, "the pooled input" if strided else "the input")
        branch = out_channels - in_channels if strided else out_channels
        if (strided and branch < 1) or (not strided and in_channels != out_channels):
            rule = "more than" if strided else "equal to"
            raise UsageError(
                f"ShuffleUnit: out_channels is {out_channels} at stride {stride}, expected {rule} in_channels={in_channels}"
            )
        check_divides("ShuffleUnit", ("groups", groups), in_channels=in_channels, branch_channels=branch)
        return cls(geometry, max(groups, out_channels // 4 // groups * groups), branch)


def shuffle_unit_parameters(
    in_channels: int, out_channels: int, kernel_size: IntPair, stride: IntPair, groups: int, bias: bool = False
) -> int:
    """Without the norms': M·h/G + h·K² + h·b/G, h being the hidden width and b = N or N − M the branch's; a bias adds 2·h + b."""
    plan = _Plan.of(in_channels, out_channels, kernel_size, stride, None, 1, groups)
    check_flag("ShuffleUnit", "bias", bias)
    weights = plan.hidden * (in_channels // groups + plan.geometry.taps) + plan.hidden // groups * plan.branch
    return weights + (2 * plan.hidden + plan.branch if bias else 0)


def shuffle_unit_macs(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair,
    groups: int,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
) -> int:
    """Multiply-accumulates of the convolutions for one sample; the first works before the stride, the others after it."""
    plan = _Plan.of(in_channels, out_channels, kernel_size, stride, None, 1, groups)
    first = plan.hidden * (in_channels // groups) * check_places("ShuffleUnit", "input_size", input_size)
    others = plan.hidden * plan.geometry.taps + plan.hidden // groups * plan.branch
    return first + others * check_places("ShuffleUnit", "output_size", output_size)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNet: group 1×1, BN, ReLU, shuffle, depthwise K×K, BN, group 1×1, BN; added to its input, then ReLU.

    At a stride above 1 the input is pooled and concatenated in place of added, so that the branch has N − M outputs. The hidden
    width is a quarter of N, rounded to a multiple of G. Initialisation: Kaiming, gain 1 where no ReLU follows.

    Args:
        in_channels: M.
        out_channels: N; equal to M at stride 1, above M otherwise.
        kernel_size: K of the depthwise convolution, odd.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution; by default d(K−1)/2, which keeps the size at stride 1.
        dilation: of the depthwise convolution.
        bias: of the convolutions; each has a norm after it, so that there is none by default.
        groups: G, of the 1×1 convolutions.

    Raises:
        UsageError: impossible numbers of channels, ``groups`` does not divide them, or the branch would have another size than
            the input or its pooling.
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
        groups: int = 2,
    ) -> None:
        super().__init__()
        plan = _Plan.of(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        check_flag("ShuffleUnit", "bias", bias)
        geometry, hidden = plan.geometry, plan.hidden
        self.strided = geometry.strided
        self.expand = nn.Conv2d(in_channels, hidden, 1, groups=groups, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.shuffle = ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(
            hidden, hidden, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, hidden, bias
        )
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, plan.branch, 1, groups=groups, bias=bias)
        self.bn3 = nn.BatchNorm2d(plan.branch)
        self.pool = nn.AvgPool2d(3, geometry.stride, 1) if self.strided else nn.Identity()
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
