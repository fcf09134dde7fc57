"""Efficient channel attention, ECA (Wang et al., CVPR 2020): a gate for each channel from the means of its neighbours.

    z = mean over space of x,  s = gate(w ⋆ z) along the channels,  y[c] = s[c] · x[c]

One kernel of k weights for all channels; k is by default the odd number nearest to (log₂C + b)/γ, with γ = 2 and b = 1: 3 for
C = 64, 5 from C = 128 on. Between two odd numbers it is the larger, as in the authors' code. Parameters: k.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from edgefold.models.blocks.arguments import check_odd, check_places, check_positive
from edgefold.models.blocks.gates import gate
from edgefold.models.blocks.init import kaiming


def eca_kernel_size(channels: int) -> int:
    """The paper's kernel size for C channels.

    Raises:
        UsageError: C is no integer of at least 1.
    """
    check_positive("EfficientChannelAttention", "channels", channels)
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


def _size(channels: int, kernel_size: int | None) -> int:
    """The kernel size that is given, or else the paper's for C, once both are known to be possible."""
    own = eca_kernel_size(channels)
    if kernel_size is None:
        return own
    check_odd("EfficientChannelAttention", "kernel_size", kernel_size)
    return kernel_size


def eca_parameters(channels: int, kernel_size: int | None = None) -> int:
    """k weights; k is by default the paper's choice for C."""
    return _size(channels, kernel_size)


def eca_macs(channels: int, size: tuple[int, int], kernel_size: int | None = None) -> int:
    """Multiply-accumulates for one sample of (H, W): the kernel along the channels, and one multiplication a pixel."""
    return channels * (_size(channels, kernel_size) + check_places("EfficientChannelAttention", "size", size))


class EfficientChannelAttention(nn.Module):
    """ECA. Initialisation: Kaiming with gain 1.

    Args:
        channels: C.
        kernel_size: k, odd; by default the paper's choice for C.
        gate_name: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        UsageError: C below 1, an even kernel, or no such gate.
    """

    def __init__(self, channels: int, kernel_size: int | None = None, gate_name: str = "sigmoid") -> None:
        super().__init__()
        size = _size(channels, kernel_size)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.gate = gate(gate_name)
        kaiming(self.conv, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        z = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        s = self.gate(self.conv(z)).squeeze(1)[:, :, None, None]  # (B, C, 1, 1)
        y: Tensor = x * s
        return y
