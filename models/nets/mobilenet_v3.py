"""MobileNetV3-Small (Howard et al., ICCV 2019): inverted residuals with hard-swish and squeeze-and-excitation.

At 224 pixels and width 1 its convolutions are the paper's. For small images the stem keeps the size, and the last strides are
dropped where the map would fall below 4×4. Below width 1 the hidden layer of the head shrinks too.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from edgefold.models.blocks.arguments import check_positive
from edgefold.models.blocks.inverted_residual import InvertedResidual
from edgefold.models.nets.common import Classifier, conv_bn_act, fitting_strides, input_size, scaled

# (kernel, hidden channels, channels, attention, activation, stride), table 2 of the paper.
_BLOCKS: Final = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hardswish", 2),
    (5, 240, 40, True, "hardswish", 1),
    (5, 240, 40, True, "hardswish", 1),
    (5, 120, 48, True, "hardswish", 1),
    (5, 144, 48, True, "hardswish", 1),
    (5, 288, 96, True, "hardswish", 2),
    (5, 576, 96, True, "hardswish", 1),
    (5, 576, 96, True, "hardswish", 1),
)


def mobilenet_v3(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, resolution: int = 28) -> Classifier:
    """MobileNetV3-Small.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: factor of all channel counts, which are rounded to multiples of 8.
        resolution: side of the image; it decides the strides.

    Raises:
        UsageError: an argument is out of range.
    """
    size = input_size("mobilenet_v3", in_channels, resolution)
    check_positive("mobilenet_v3", "num_classes", num_classes)
    strides = fitting_strides(resolution, (2, *(stride for *_, stride in _BLOCKS)))
    channels = scaled(16, width)
    layers: list[nn.Module] = [conv_bn_act(in_channels, channels, stride=strides[0], activation=nn.Hardswish)]
    for (kernel, hidden, wanted, attention, activation, _), stride in zip(_BLOCKS, strides[1:], strict=True):
        out = scaled(wanted, width)
        layers.append(
            InvertedResidual(
                channels,
                out,
                kernel,
                stride,
                kernel // 2,
                expand=scaled(hidden, width) / channels,
                activation=activation,
                attention=attention,
            )
        )
        channels = out
    last, hidden = scaled(576, width), scaled(1024, width)
    layers.append(conv_bn_act(channels, last, 1, activation=nn.Hardswish))
    head = nn.Sequential(nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, num_classes))
    return Classifier("mobilenet_v3", nn.Sequential(*layers), last, num_classes, size, head)
