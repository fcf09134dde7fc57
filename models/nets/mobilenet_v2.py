"""MobileNetV2 (Sandler et al., CVPR 2018): inverted residuals with ReLU6.

At 224 pixels and width 1 it is the paper's network. For small images the stem keeps the size, and the last strides are
dropped where the map would fall below 4×4. Below width 1 the last convolution shrinks too, unlike the paper's: it would be
most of a small network.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from edgefold.models.blocks.inverted_residual import InvertedResidual
from edgefold.models.nets.common import Classifier, conv_bn_act, fitting_strides, input_size, scaled

# (expansion t, channels c, repeats n, stride s), table 2 of the paper.
_STAGES: Final = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, resolution: int = 28) -> Classifier:
    """MobileNetV2.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: factor of all channel counts, which are rounded to multiples of 8.
        resolution: side of the image; it decides the strides.

    Raises:
        UsageError: an argument is out of range.
    """
    size = input_size("mobilenet_v2", in_channels, resolution)
    strides = fitting_strides(resolution, (2, *(stride for *_, stride in _STAGES)))
    channels = scaled(32, width)
    layers: list[nn.Module] = [conv_bn_act(in_channels, channels, stride=strides[0], activation=nn.ReLU6)]
    for (expand, wanted, repeats, _), stride in zip(_STAGES, strides[1:], strict=True):
        out = scaled(wanted, width)
        for index in range(repeats):
            layers.append(InvertedResidual(channels, out, stride=stride if index == 0 else 1, expand=expand))
            channels = out
    last = scaled(1280, width)
    layers.append(conv_bn_act(channels, last, 1, activation=nn.ReLU6))
    return Classifier("mobilenet_v2", nn.Sequential(*layers), last, num_classes, size)
