"""MobileNetV1 (Howard et al., arXiv:1704.04861): depthwise and pointwise convolutions, each with BatchNorm and ReLU.

At 224 pixels and width 1 it is the paper's network. For small images the stem keeps the size, and the last strides are
dropped where the map would fall below 4×4.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from edgefold.models.nets.common import Classifier, conv_bn_act, fitting_strides, input_size, scaled

# (output channels, stride) of each depthwise and pointwise pair.
_PAIRS: Final = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


def mobilenet_v1(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, resolution: int = 28) -> Classifier:
    """MobileNetV1.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: factor of all channel counts, which are rounded to multiples of 8.
        resolution: side of the image; it decides the strides.

    Raises:
        UsageError: an argument is out of range.
    """
    size = input_size("mobilenet_v1", in_channels, resolution)
    strides = fitting_strides(resolution, (2, *(stride for _, stride in _PAIRS)))
    channels = scaled(32, width)
    layers: list[nn.Module] = [conv_bn_act(in_channels, channels, stride=strides[0])]
    for (wanted, _), stride in zip(_PAIRS, strides[1:], strict=True):
        out = scaled(wanted, width)
        layers += [conv_bn_act(channels, channels, stride=stride, groups=channels), conv_bn_act(channels, out, 1)]
        channels = out
    return Classifier("mobilenet_v1", nn.Sequential(*layers), channels, num_classes, size)
