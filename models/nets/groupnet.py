"""GroupNet: a stem, two group convolutions, and a classifier; the smallest network in which grouping can be studied.

stem    3×3 conv, w channels, stride 1
conv1   3×3 group conv, 2w channels, stride 2
conv2   3×3 group conv, 4w channels, stride 2
head    global mean, linear
"""

from __future__ import annotations

from torch import nn

from edgefold.models.blocks.arguments import check_divides, check_positive
from edgefold.models.nets.common import Classifier, conv_bn_act, input_size


def groupnet(num_classes: int = 10, in_channels: int = 1, width: int = 32, resolution: int = 28, groups: int = 4) -> Classifier:
    """A GroupNet.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the stem.
        resolution: side of the image.
        groups: G of both group convolutions; it divides the width.

    Raises:
        UsageError: an argument is out of range, or ``groups`` does not divide the width.
    """
    size = input_size("groupnet", in_channels, resolution)
    check_positive("groupnet", "width", width)
    check_divides("groupnet", ("groups", groups), width=width)
    features = nn.Sequential(
        conv_bn_act(in_channels, width),
        conv_bn_act(width, 2 * width, stride=2, groups=groups),
        conv_bn_act(2 * width, 4 * width, stride=2, groups=groups),
    )
    return Classifier("groupnet", features, 4 * width, num_classes, size)
