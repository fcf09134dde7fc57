"""Convolutions whose kernel has a fixed zero pattern, held as one dense weight and a mask.

With W of shape (N, M, Kh, Kw) and a 0/1 mask C of the same shape, y = (W ⊙ C) ⋆ x + b. One dense convolution is the fastest
way to train such a layer on every framework; the entries outside the mask get no gradient, take no part in the result and
are no parameters of the model (`MaskedConv2d.effective_parameters`). Masks are how sparse connections between maps have been
written since LeNet-5's table of them (LeCun et al., Proc. IEEE 86(11), 1998); the initialisation is He et al., ICCV 2015.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_convolution


class MaskedConv2d(nn.Module):
    """A convolution with the weight ``weight * mask``; the base of the blocks with a zero pattern.

    Initialisation: Kaiming normal for ReLU, filter by filter, with the effective fan-in: filter n draws from
    N(0, 2 / Σ mask[n]) (He et al., ICCV 2015, eq. 10, with the connections that exist). The bias starts at zero.

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: K or (Kh, Kw).
        stride: s or (sh, sw).
        padding: zeros on each side, p or (ph, pw).
        dilation: d or (dh, dw).
        bias: whether there is a bias of shape (N,).
        mask: bool, (N, M, Kh, Kw), by name; true where a weight exists.

    Raises:
        UsageError: an argument is out of range, the mask is no tensor of the weight's shape, or a filter has no weight at all.
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = True,
        *,
        mask: Tensor,
    ) -> None:
        super().__init__()
        block = type(self).__name__
        geometry = check_convolution(block, in_channels, out_channels, kernel_size, stride, padding, dilation, bias)
        shape = (out_channels, in_channels, *geometry.kernel_size)
        if not isinstance(mask, Tensor):
            raise UsageError(f"{block}: mask is a {type(mask).__name__}, expected a tensor of the shape {shape} like the weight")
        if mask.shape != shape:
            raise UsageError(f"{block}: mask has the shape {tuple(mask.shape)}, expected {shape} like the weight")
        if not mask.flatten(1).any(1).all():
            raise UsageError(f"{block}: mask leaves a filter without any weight, expected at least one in each of {out_channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # The mask follows from the constructor's arguments, so checkpoints do not hold it.
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew, as the class docstring says."""
        fan_in = self.mask.flatten(1).sum(1)  # (N,)
        with torch.no_grad():
            self.weight.normal_()
            self.weight.mul_(self.mask * torch.sqrt(2.0 / fan_in).view(-1, 1, 1, 1))
            if self.bias is not None:
                self.bias.zero_()

    def dense_weight(self) -> Tensor:
        """The weight that the layer applies, (N, M, Kh, Kw), zero outside the mask."""
        return self.weight * self.mask

    @property
    def effective_parameters(self) -> int:
        """The number of weights inside the mask, plus the bias."""
        return int(torch.count_nonzero(self.mask)) + (0 if self.bias is None else self.out_channels)

    def effective_macs(self, output_size: tuple[int, int]) -> int:
        """Multiply-accumulates for one sample with an output of (H', W')."""
        return int(torch.count_nonzero(self.mask)) * math.prod(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )
