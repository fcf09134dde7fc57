"""The inverted residual (MobileNetV2, Sandler et al., CVPR 2018; with hard-swish and attention, V3, Howard et al., ICCV 2019).

    1×1 to t·M channels, BN, act    (left out at t = 1)
    depthwise K×K, stride s, BN, act
    squeeze-and-excitation          (where wanted)
    1×1 to N channels, BN           linear: no activation
    + input                         if s = 1 and M = N

Parameters without norms, bias and attention: t·M·(M·[t ≠ 1] + K² + N). Attention adds those of squeeze-and-excitation over
t·M channels with r = 4: 2·t·M·h + h + t·M with h = ⌊t·M/4⌋.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    IntPair,
    check_channels,
    check_convolution,
    check_factor,
    check_flag,
    check_joinable,
    check_name,
    check_places,
    unit_geometry,
)
from edgefold.models.blocks.init import kaiming
from edgefold.models.blocks.squeeze_excite import SqueezeExcite, squeeze_excite_macs, squeeze_excite_parameters

REDUCTION: Final = 4  # of the attention
ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {"hardswish": nn.Hardswish, "relu": nn.ReLU, "relu6": nn.ReLU6}


def inverted_residual_parameters(
    in_channels: int, out_channels: int, kernel_size: IntPair, expand: float, attention: bool = False, bias: bool = False
) -> int:
    """Parameters without the norms': t·M·(M·[t ≠ 1] + K² + N), plus those of attention, plus one for each output with a bias."""
    taps = check_convolution("InvertedResidual", in_channels, out_channels, kernel_size, bias=bias).taps
    check_flag("InvertedResidual", "attention", attention)
    hidden, wide = _hidden(in_channels, expand), expand != 1
    weights = hidden * ((in_channels if wide else 0) + taps + out_channels)
    biases = (hidden if wide else 0) + hidden + out_channels if bias else 0
    return weights + biases + (squeeze_excite_parameters(hidden, REDUCTION) if attention else 0)


def inverted_residual_macs(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    expand: float,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    attention: bool = False,
) -> int:
    """Multiply-accumulates for one sample; the first convolution works before the stride, the others and attention after it."""
    block = "InvertedResidual"
    taps = check_convolution(block, in_channels, out_channels, kernel_size).taps
    check_flag(block, "attention", attention)
    hidden = _hidden(in_channels, expand)
    before, after = check_places(block, "input_size", input_size), check_places(block, "output_size", output_size)
    convolutions = hidden * ((in_channels * before if expand != 1 else 0) + (taps + out_channels) * after)
    return convolutions + (squeeze_excite_macs(hidden, REDUCTION, output_size) if attention else 0)


def _hidden(in_channels: int, expand: float) -> int:
    """t·M, rounded; at least 1 or a `UsageError`."""
    check_factor("InvertedResidual", "expand", expand)
    hidden = round(in_channels * expand)
    if hidden < 1:
        raise UsageError(f"InvertedResidual: expand is {expand}, which leaves no hidden channel of in_channels={in_channels}")
    return hidden


class InvertedResidual(nn.Module):
    """An inverted residual. Initialisation: Kaiming, gain 1 in the linear last convolution.

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: K of the depthwise convolution; odd where the input is added.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution; by default d(K−1)/2, which keeps the size at stride 1.
        dilation: of the depthwise convolution.
        bias: of the convolutions; each has a norm after it, so that there is none by default.
        expand: t, the hidden channels for each input channel; t·M is rounded.
        activation: ``relu6`` (V2), ``hardswish`` or ``relu`` (V3).
        attention: whether there is squeeze-and-excitation, with a hard sigmoid.

    Raises:
        UsageError: an argument is out of range, the input is added and the branch would have another size, or there is no such
            activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: IntPair | None = None,
        dilation: IntPair = 1,
        bias: bool = False,
        expand: float = 6,
        activation: str = "relu6",
        attention: bool = False,
    ) -> None:
        super().__init__()
        check_channels("InvertedResidual", in_channels, out_channels)
        geometry = unit_geometry("InvertedResidual", kernel_size, stride, padding, dilation)
        self.skip = not geometry.strided and in_channels == out_channels
        if self.skip:
            check_joinable("InvertedResidual", geometry, "the input")
        check_flag("InvertedResidual", "bias", bias)
        check_flag("InvertedResidual", "attention", attention)
        check_name("activation of InvertedResidual", activation, ACTIVATIONS)
        act = ACTIVATIONS[activation]
        hidden = _hidden(in_channels, expand)
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(in_channels, hidden, 1, bias=bias), nn.BatchNorm2d(hidden), act()]
        layers += [
            nn.Conv2d(hidden, hidden, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, hidden, bias),
            nn.BatchNorm2d(hidden),
            act(),
        ]
        if attention:
            layers.append(SqueezeExcite(hidden, REDUCTION, "hardsigmoid"))
        linear = nn.Conv2d(hidden, out_channels, 1, bias=bias)
        self.layers = nn.Sequential(*layers, linear, nn.BatchNorm2d(out_channels))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                kaiming(layer)
        kaiming(linear, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y
