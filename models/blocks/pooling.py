"""Pooling: the largest or the mean value of a window of each channel. No weights, and as many outputs as inputs.

    average   y[c, i, j] = mean of x[c] over the window at (i, j)   (subsampling: LeCun et al., Proc. IEEE 86(11), 1998)
    max       y[c, i, j] = largest x[c] in the window at (i, j)     (Ranzato et al., CVPR 2007; Scherer et al., ICANN 2010)
    global    the window is the whole image                         (mean: Lin et al., ICLR 2014; max: Oquab et al., CVPR 2015)

The constructors follow the convention of the other blocks, so that a pooling can stand where a convolution does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_channels, check_convolution, check_places


def pooling_parameters(in_channels: int, out_channels: int, kernel_size: IntPair) -> int:
    """None: 0, for any window."""
    _check_equal("pooling", in_channels, out_channels)
    check_convolution("pooling", in_channels, out_channels, kernel_size)
    return 0


def pooling_macs(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample: 0. What a pooling does is `pooling_operations`, which papers leave out."""
    check_places("pooling", "output_size", output_size)
    return pooling_parameters(in_channels, out_channels, kernel_size)


def pooling_operations(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Additions or comparisons for one sample with an output of (H', W'): M·K²·H'·W', one for each value of each window.

    Values of the padding count as if they were read. The window of a global pooling is the image, and its output 1×1.
    """
    _check_equal("pooling", in_channels, out_channels)
    taps = check_convolution("pooling", in_channels, out_channels, kernel_size).taps
    return in_channels * taps * check_places("pooling", "output_size", output_size)


def _check_equal(block: str, in_channels: int, out_channels: int) -> None:
    """Raises a `UsageError` unless the channel counts are positive and equal."""
    check_channels(block, in_channels, out_channels)
    if in_channels != out_channels:
        raise UsageError(f"{block}: out_channels is {out_channels}, expected in_channels={in_channels}, which pooling keeps")


class _Pool2d(nn.Module):
    """The common part: checked geometry, equal channel counts. ``bias`` is there for the convention's sake, and false."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        block = type(self).__name__
        _check_equal(block, in_channels, out_channels)
        self.geometry = check_convolution(block, in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        if bias:
            raise UsageError(f"{block}: bias is True, expected False, because pooling has no weights")
        if any(2 * p > k for p, k in zip(self.geometry.padding, self.geometry.kernel_size, strict=True)):
            raise UsageError(
                f"{block}: padding is {self.geometry.padding}, expected at most half of kernel_size {self.geometry.kernel_size}"
            )


class MaxPool2d(_Pool2d):
    """The largest value of each window; padding never wins. Initialisation: none, it has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H', W')."""
        shape = self.geometry
        return F.max_pool2d(x, shape.kernel_size, shape.stride, shape.padding, shape.dilation)


class AveragePool2d(_Pool2d):
    """The mean of each window over the pixels that are inside the image. Initialisation: none, it has no weights.

    Raises:
        UsageError: ``dilation`` is not 1; no runtime has a dilated mean.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        if self.geometry.dilation != (1, 1):
            raise UsageError(f"AveragePool2d: dilation is {self.geometry.dilation}, expected 1")

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H', W')."""
        shape = self.geometry
        return F.avg_pool2d(x, shape.kernel_size, shape.stride, shape.padding, count_include_pad=False)


class _GlobalPool2d(nn.Module):
    """The common part: any number of channels, whose counts are there for the convention's sake."""

    def __init__(self, in_channels: int | None = None, out_channels: int | None = None) -> None:
        super().__init__()
        given = [count for count in (in_channels, out_channels) if count is not None]
        if given:
            _check_equal(type(self).__name__, given[0], given[-1])


class GlobalAveragePool2d(_GlobalPool2d):
    """The mean of each channel over the whole image, kept as 1×1. A mean is what every exporter takes, at any size.

    The channel counts may be left out. Initialisation: none, it has no weights.

    Raises:
        UsageError: the counts are given and not positive, or not equal.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class GlobalMaxPool2d(_GlobalPool2d):
    """The largest value of each channel over the whole image, kept as 1×1; the arguments are those of `GlobalAveragePool2d`.

    Initialisation: none, it has no weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, 1, 1)."""
        return x.amax((2, 3), keepdim=True)
