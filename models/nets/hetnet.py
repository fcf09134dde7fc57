"""HetNet: a small residual network of HetConv, BatchNorm and ReLU for images of 28×28 to 32×32.

    stem    3×3 conv, w/2 channels, stride 1
    stage i of 3: blocks[i] residual blocks of w·2^i channels, the first with stride 2
    head    global mean, linear

A block is HetConv-BN-ReLU-HetConv-BN plus its input, then ReLU (He et al., CVPR 2016, with the convolutions of Singh et al., CVPR
2019). The wide layers are at 14×14 and below, where a HetConv's saving is largest and activations are few; there is no op whose
INT8 form is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.nets.common import Classifier
from edgefold.models.nets.residual import small_residual


def hetnet(
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 32,
    resolution: int = 28,
    p: int = 4,
    blocks: Sequence[int] = (2, 2, 1),
) -> Classifier:
    """A HetNet. With the defaults: 141,434 effective parameters.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the first stage, even; each further stage has twice as many.
        resolution: side of the image.
        p: the part P of every HetConv.
        blocks: residual blocks of each stage.

    Raises:
        UsageError: an argument is out of range.
    """
    return small_residual("hetnet", partial(HetConv2d, p=p), num_classes, in_channels, width, resolution, blocks)
