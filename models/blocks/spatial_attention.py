"""Spatial attention (the second half of CBAM, Woo et al., ECCV 2018): a gate for each place of the image.

    y[:, i, j] = gate(w ⋆ [mean_c x; max_c x])[i, j] · x[:, i, j]

w is one K×K kernel over the two maps, with a bias. Parameters: 2·K² + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefold.models.blocks.arguments import check_odd, check_places, check_positive
from edgefold.models.blocks.gates import gate
from edgefold.models.blocks.init import kaiming


def spatial_attention_parameters(kernel_size: int = 7) -> int:
    """2·K² + 1."""
    check_odd("SpatialAttention", "kernel_size", kernel_size)
    return 2 * kernel_size**2 + 1


def spatial_attention_macs(channels: int, kernel_size: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample of (H, W): the kernel, and one multiplication a channel for the gate."""
    check_positive("SpatialAttention", "channels", channels)
    check_odd("SpatialAttention", "kernel_size", kernel_size)
    return (2 * kernel_size**2 + channels) * check_places("SpatialAttention", "size", size)


class SpatialAttention(nn.Module):
    """Spatial attention. Initialisation: Kaiming with gain 1, bias zero.

    Args:
        kernel_size: K, odd.
        gate_name: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        UsageError: an even kernel, or no such gate.
    """

    def __init__(self, kernel_size: int = 7, gate_name: str = "sigmoid") -> None:
        super().__init__()
        check_odd("SpatialAttention", "kernel_size", kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        self.gate = gate(gate_name)
        kaiming(self.conv, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, 2, H, W)
        y: Tensor = x * self.gate(self.conv(maps))
        return y
