"""ShuffleNet V2 (Ma et al., ECCV 2018): units that split the channels, transform one half, and shuffle.

At 224 pixels and width 1 it is the paper's network, but for the max pooling after the stem, which only images of 64 pixels and
more have. For small images the stem keeps the size, and the last strides are dropped where the map would fall below 4×4.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from edgefold.models.blocks.shuffle_v2 import ShuffleUnitV2
from edgefold.models.nets.common import Classifier, conv_bn_act, fitting_strides, input_size, scaled

_STAGES: Final = ((116, 4), (232, 8), (464, 4))  # (channels, units), table 5 of the paper


def shufflenet_v2(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, resolution: int = 28) -> Classifier:
    """ShuffleNet V2.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: factor of all channel counts, which are rounded to multiples of 4, and of the last convolution's below 1.
        resolution: side of the image; it decides the strides.

    Raises:
        UsageError: an argument is out of range.
    """
    size = input_size("shufflenet_v2", in_channels, resolution)
    pooled = resolution >= 64
    strides = fitting_strides(resolution, (2, 2, 2, 2, 2) if pooled else (2, 2, 2, 2))
    channels = scaled(24, min(width, 1.0))
    layers: list[nn.Module] = [conv_bn_act(in_channels, channels, stride=strides[0])]
    if pooled:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for (wanted, units), stride in zip(_STAGES, strides[-3:], strict=True):
        out = scaled(wanted, width, divisor=4)
        # A unit of stride 1 keeps its channels; where the stride was dropped, a 1×1 convolution makes the new ones.
        layers.append(ShuffleUnitV2(channels, out, stride=2) if stride == 2 else conv_bn_act(channels, out, 1))
        layers += [ShuffleUnitV2(out, out) for _ in range(units - 1)]
        channels = out
    last = scaled(1024, min(width, 1.0))
    layers.append(conv_bn_act(channels, last, 1))
    return Classifier("shufflenet_v2", nn.Sequential(*layers), last, num_classes, size)
