"""DualNet: the network of `edgefold.models.nets.hetnet` with DualConv (Zhong et al., IEEE TNNLS 2023) in its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edgefold.models.blocks.dual import DualConv2d
from edgefold.models.nets.common import Classifier
from edgefold.models.nets.residual import small_residual


def dualnet(
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 32,
    resolution: int = 28,
    groups: int = 4,
    blocks: Sequence[int] = (2, 2, 1),
) -> Classifier:
    """A DualNet.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the first stage, even; each further stage has twice as many.
        resolution: side of the image.
        groups: G of every DualConv; it divides w/2.
        blocks: residual blocks of each stage.

    Raises:
        UsageError: an argument is out of range, or ``groups`` does not divide the channels of a layer.
    """
    return small_residual("dualnet", partial(DualConv2d, groups=groups), num_classes, in_channels, width, resolution, blocks)
