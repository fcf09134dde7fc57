"""VGG-16 for small images (Simonyan and Zisserman, ICLR 2015; in the form that the HetConv paper measures), with any convolution.

Thirteen 3×3 convolutions with BatchNorm and ReLU in five stages, each ended by 2×2 max pooling while the map is larger than one
pixel; then a hidden linear layer and the classifier. The first convolution stays dense.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from edgefold.models.blocks.arguments import check_positive
from edgefold.models.blocks.choose import ConvFactory, conv_factory
from edgefold.models.nets.common import Classifier, input_size, scaled

_STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(
    num_classes: int = 10,
    in_channels: int = 1,
    width: float = 1.0,
    resolution: int = 28,
    conv: str | ConvFactory = "standard",
) -> Classifier:
    """VGG-16.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: factor of all channel counts, which are rounded to multiples of 8.
        resolution: side of the image.
        conv: the convolution, as `edgefold.models.blocks.conv_factory` takes it: ``"hetconv:4"``.

    Raises:
        UsageError: an argument is out of range, or the convolution does not fit a layer.
    """
    size = input_size("vgg16", in_channels, resolution)
    check_positive("vgg16", "num_classes", num_classes)
    factory = conv_factory(conv)
    layers: list[nn.Module] = []
    channels, side = in_channels, resolution
    for stage in _STAGES:
        for wanted in stage:
            out = scaled(wanted, width)
            make = factory if layers else conv_factory("standard")
            layers += [make(channels, out, 3, stride=1, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        if side > 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, num_classes))
    return Classifier("vgg16", nn.Sequential(*layers), channels, num_classes, size, head)
