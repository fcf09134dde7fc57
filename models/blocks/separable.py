"""The depthwise separable convolution (MobileNetV1, Howard et al., arXiv:1704.04861; Xception, Chollet, CVPR 2017).

A depthwise K×K convolution, one kernel a channel, then a 1×1 convolution over all channels:

    y[n] = Σ_m v[n, m] · (W[m] ⋆ x[m]) + b[n]

Parameters without bias: M·K² + M·N. The cost ratio to a standard convolution is 1/N + 1/K². There is no norm or activation
between the two here; `edgefold.models.nets.mobilenet_v1` puts them there.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgefold.models.blocks.arguments import IntPair, check_convolution, check_places
from edgefold.models.blocks.init import kaiming


def separable_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, bias: bool = False) -> int:
    """M·K² + M·N, plus N with a bias."""
    taps = check_convolution("DepthwiseSeparableConv2d", in_channels, out_channels, kernel_size, bias=bias).taps
    return in_channels * taps + in_channels * out_channels + (out_channels if bias else 0)


def separable_macs(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W'); the 1×1 convolution comes after the stride."""
    places = check_places("DepthwiseSeparableConv2d", "output_size", output_size)
    return separable_parameters(in_channels, out_channels, kernel_size) * places


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise, then pointwise. The bias is the pointwise convolution's.

    Initialisation: Kaiming; for a linear successor in the depthwise part, for ReLU in the pointwise part.

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
        super().__init__()
        block = "DepthwiseSeparableConv2d"
        geometry = check_convolution(block, in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            groups=in_channels,
            bias=False,
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        kaiming(self.depthwise, gain=1.0)
        kaiming(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y
