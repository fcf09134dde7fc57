"""The standard convolution (LeCun et al., Proc. IEEE 86(11), 1998): every output channel sees every input channel.

    y = W ⋆ x + b,  W of shape (N, M, K, K),  H' = ⌊(H + 2p − d(K−1) − 1)/s⌋ + 1

The size H' is derived in Dumoulin and Visin, arXiv:1603.07285; dilation in Yu and Koltun, ICLR 2016.
Parameters without bias: N·M·K². Multiply-accumulates: those times H'·W'.
"""

from __future__ import annotations

from torch import nn

from edgefold.models.blocks.arguments import IntPair, check_convolution, check_places
from edgefold.models.blocks.init import kaiming


def standard_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, bias: bool = False) -> int:
    """N·M·K², plus N with a bias. Like all formulas, it raises a `UsageError` for what the constructor refuses."""
    taps = check_convolution("StandardConv2d", in_channels, out_channels, kernel_size, bias=bias).taps
    return out_channels * in_channels * taps + (out_channels if bias else 0)


def standard_macs(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W')."""
    places = check_places("StandardConv2d", "output_size", output_size)
    return standard_parameters(in_channels, out_channels, kernel_size) * places


class StandardConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with checked arguments. Initialisation: Kaiming normal for ReLU with the fan-in M·K²; the bias zero.

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
        geometry = check_convolution("StandardConv2d", in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        super().__init__(
            in_channels, out_channels, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, bias=bias
        )
        kaiming(self)
