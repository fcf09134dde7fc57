"""The spatially unshared locally connected layer (LeCun, 1989; Keras' LocallyConnected2D).

Like a convolution, but with a kernel of its own at each output position:

    y[n, i, j] = Σ_{m, u, v} W[i, j, n, m, u, v] · x[m, s·i − p + d·u, s·j − p + d·v] + b[n, i, j]

It is not shift-invariant, so that no convolution equals it, and works at one image size only. Parameters without bias:
H'·W'·N·M·K².
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_convolution, check_pair, check_places


def locally_connected_parameters(
    in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int], bias: bool = False
) -> int:
    """H'·W'·N·M·K², plus H'·W'·N with a bias."""
    taps = check_convolution("LocallyConnected2d", in_channels, out_channels, kernel_size, bias=bias).taps
    positions = check_places("LocallyConnected2d", "output_size", output_size)
    return positions * out_channels * (in_channels * taps + (1 if bias else 0))


def locally_connected_macs(in_channels: int, out_channels: int, kernel_size: IntPair, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample: each weight is used once."""
    return locally_connected_parameters(in_channels, out_channels, kernel_size, output_size)


class LocallyConnected2d(nn.Module):
    """A locally connected layer for images of ``input_size``.

    Initialisation: Kaiming for ReLU with the fan-in M·K²; the bias zero.

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: K or (Kh, Kw).
        stride: s or (sh, sw).
        padding: zeros on each side.
        dilation: of the kernels.
        bias: whether there is a bias, one value for each output.
        input_size: (H, W) of the images.

    Raises:
        UsageError: an argument is out of range, or the image is smaller than the kernel.
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
        input_size: IntPair = 28,
    ) -> None:
        super().__init__()
        block = "LocallyConnected2d"
        self.geometry = check_convolution(block, in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_size = check_pair(block, "input_size", input_size)
        self.output_size = self.geometry.output_size(self.input_size)
        if min(self.output_size) < 1:
            raise UsageError(
                f"LocallyConnected2d: input_size is {self.input_size}, too small for kernel_size {self.geometry.kernel_size} "
                f"with padding {self.geometry.padding} and dilation {self.geometry.dilation}"
            )
        fan_in = in_channels * self.geometry.taps
        positions = math.prod(self.output_size)
        self.weight = nn.Parameter(torch.randn(positions, out_channels, fan_in) * math.sqrt(2.0 / fan_in))
        self.bias = nn.Parameter(torch.zeros(out_channels, *self.output_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        if tuple(x.shape[2:]) != self.input_size:
            raise UsageError(
                f"LocallyConnected2d was made for images of {self.input_size}, but got {tuple(x.shape[2:])}; "
                "it has a kernel for each position and works at one size"
            )
        windows = self._windows(x)
        # One matrix product for each position l: (H'W', B, M·K²) @ (H'W', M·K², N).
        y = torch.bmm(windows.permute(2, 0, 1), self.weight.transpose(1, 2))  # (H'·W', B, N)
        y = y.permute(1, 2, 0).reshape(len(x), -1, *self.output_size)
        return y if self.bias is None else y + self.bias

    def _windows(self, x: Tensor) -> Tensor:
        """What each position sees, (B, M·K², H'·W'), by strided slices, which every runtime has."""
        (top, left), (height, width) = self.geometry.padding, self.geometry.kernel_size
        padded = F.pad(x, (left, left, top, top))
        taps = [padded[:, :, self._span(0, row), self._span(1, column)] for row in range(height) for column in range(width)]
        return torch.stack(taps, 2).flatten(3).flatten(1, 2)  # from (B, M, K², H', W')

    def _span(self, axis: int, tap: int) -> slice:
        start = tap * self.geometry.dilation[axis]
        step = self.geometry.stride[axis]
        return slice(start, start + (self.output_size[axis] - 1) * step + 1, step)
