"""Squeeze-and-excitation (Hu et al., CVPR 2018): a gate for each channel, computed from the means of all channels.

    z = mean over space of x,  s = gate(W₂ · relu(W₁ · z + b₁) + b₂),  y[c] = s[c] · x[c]

W₁ maps C channels to C/r, W₂ back. The gates are independent and need not sum to 1. Parameters: 2·C·(C/r) + C/r + C.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgefold.models.blocks.arguments import check_places, check_positive
from edgefold.models.blocks.gates import gate
from edgefold.models.blocks.init import kaiming


def squeeze_excite_parameters(channels: int, reduction: int = 4) -> int:
    """2·C·h + h + C with h = max(1, ⌊C/r⌋)."""
    hidden = hidden_channels("SqueezeExcite", channels, reduction)
    return 2 * channels * hidden + hidden + channels


def squeeze_excite_macs(channels: int, reduction: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample of (H, W): the two maps, and one multiplication a pixel for the gate."""
    hidden = hidden_channels("SqueezeExcite", channels, reduction)
    return 2 * channels * hidden + channels * check_places("SqueezeExcite", "size", size)


def hidden_channels(block: str, channels: int, reduction: int) -> int:
    """max(1, ⌊C/r⌋): the width between the two maps.

    Raises:
        UsageError: a number is no integer of at least 1.
    """
    check_positive(block, "channels", channels)
    check_positive(block, "reduction", reduction)
    return max(1, channels // reduction)


class SqueezeExcite(nn.Module):
    """Channel attention by squeeze and excitation.

    Initialisation: Kaiming, for ReLU in the first map and with gain 1 in the second; biases zero.

    Args:
        channels: C.
        reduction: r; the hidden layer has C/r channels, at least one.
        gate_name: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        UsageError: a number below 1, or no such gate.
    """

    def __init__(self, channels: int, reduction: int = 4, gate_name: str = "sigmoid") -> None:
        super().__init__()
        hidden = hidden_channels("SqueezeExcite", channels, reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = gate(gate_name)
        kaiming(self.reduce)
        kaiming(self.expand, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        z = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        y: Tensor = x * self.gate(self.expand(self.relu(self.reduce(z))))
        return y
