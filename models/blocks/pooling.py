"""Pooling: the largest or the mean value of a window of each channel. No weights, and as many outputs as inputs.

The constructors follow the convention of the other blocks, so that a pooling can stand where a convolution does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_channels, check_geometry


class _Pool2d(nn.Module):
    """The common part: checked geometry, equal channel counts."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
    ) -> None:
        super().__init__()
        block = type(self).__name__
        check_channels(block, in_channels, out_channels)
        if in_channels != out_channels:
            raise UsageError(f"{block}: out_channels is {out_channels}, expected in_channels={in_channels}, which pooling keeps")
        self.geometry = check_geometry(block, kernel_size, stride, padding, dilation)
        if any(2 * p > k for p, k in zip(self.geometry.padding, self.geometry.kernel_size, strict=True)):
            raise UsageError(
                f"{block}: padding is {self.geometry.padding}, expected at most half of kernel_size {self.geometry.kernel_size}"
            )


class MaxPool2d(_Pool2d):
    """The largest value of each window; padding never wins."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H', W')."""
        shape = self.geometry
        return F.max_pool2d(x, shape.kernel_size, shape.stride, shape.padding, shape.dilation)


class AveragePool2d(_Pool2d):
    """The mean of each window over the pixels that are inside the image.

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
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation)
        if self.geometry.dilation != (1, 1):
            raise UsageError(f"AveragePool2d: dilation is {self.geometry.dilation}, expected 1")

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H', W')."""
        shape = self.geometry
        return F.avg_pool2d(x, shape.kernel_size, shape.stride, shape.padding, count_include_pad=False)


class GlobalAveragePool2d(nn.Module):
    """The mean of each channel over the whole image, kept as 1×1. A mean is what every exporter takes, at any size."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class GlobalMaxPool2d(nn.Module):
    """The largest value of each channel over the whole image, kept as 1×1."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, 1, 1)."""
        return x.amax((2, 3), keepdim=True)
