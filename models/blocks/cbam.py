"""CBAM (Woo et al., ECCV 2018): channel attention, then spatial attention.

The channel gate adds the answers of one two-layer map W₂·relu(W₁·z) to the means and to the maxima of the channels:

    s = gate(map(mean x) + map(max x)),  y[c] = s[c] · x[c]

Parameters: 2·C·(C/r) + C/r + C for the map, 2·K² + 1 for the spatial part.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgefold.models.blocks.arguments import check_places
from edgefold.models.blocks.gates import gate
from edgefold.models.blocks.init import kaiming
from edgefold.models.blocks.spatial_attention import (
    SpatialAttention,
    spatial_attention_macs,
    spatial_attention_parameters,
)
from edgefold.models.blocks.squeeze_excite import hidden_channels


def channel_attention_parameters(channels: int, reduction: int = 16) -> int:
    """2·C·h + h + C with h = max(1, ⌊C/r⌋): one map, used twice."""
    hidden = hidden_channels("ChannelAttention", channels, reduction)
    return 2 * channels * hidden + hidden + channels


def channel_attention_macs(channels: int, reduction: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample of (H, W): the map twice, and one multiplication a pixel for the gate."""
    hidden = hidden_channels("ChannelAttention", channels, reduction)
    return 4 * channels * hidden + channels * check_places("ChannelAttention", "size", size)


def cbam_parameters(channels: int, reduction: int = 16, kernel_size: int = 7) -> int:
    """The map of the channel part and the kernel of the spatial part."""
    return channel_attention_parameters(channels, reduction) + spatial_attention_parameters(kernel_size)


def cbam_macs(channels: int, reduction: int, kernel_size: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample of (H, W): the map twice, the kernel once, and both gates."""
    return channel_attention_macs(channels, reduction, size) + spatial_attention_macs(channels, kernel_size, size)


class ChannelAttention(nn.Module):
    """The channel part of CBAM: gates from the means and the maxima.

    Initialisation: as in `SqueezeExcite`, Kaiming, for ReLU in the first map and with gain 1 in the second; biases zero.

    Args:
        channels: C.
        reduction: r; the hidden layer has C/r channels, at least one.
        gate_name: ``sigmoid`` or ``hardsigmoid``.

    Raises:
        UsageError: a number below 1, or no such gate.
    """

    def __init__(self, channels: int, reduction: int = 16, gate_name: str = "sigmoid") -> None:
        super().__init__()
        hidden = hidden_channels("ChannelAttention", channels, reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = gate(gate_name)
        kaiming(self.reduce)
        kaiming(self.expand, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        means, maxima = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)  # (B, C, 1, 1)
        answers = self.expand(self.relu(self.reduce(means))) + self.expand(self.relu(self.reduce(maxima)))
        y: Tensor = x * self.gate(answers)
        return y


class CBAM(nn.Module):
    """Channel attention, then spatial attention.

    Initialisation: that of its parts, `ChannelAttention` and `SpatialAttention`.

    Args:
        channels: C.
        reduction: r of the channel part.
        kernel_size: K of the spatial part, odd.
        gate_name: of both parts.

    Raises:
        UsageError: a number below 1, an even kernel, or no such gate.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7, gate_name: str = "sigmoid") -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction, gate_name)
        self.spatial = SpatialAttention(kernel_size, gate_name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y: Tensor = self.spatial(self.channel(x))
        return y
