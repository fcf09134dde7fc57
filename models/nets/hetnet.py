"""HetNet: a small residual network of HetConv, BatchNorm and ReLU for images of 28×28 to 32×32.

    stem    3×3 conv, w/2 channels, stride 1
    stage i of 3: blocks[i] residual blocks of w·2^i channels, the first with stride 2
    head    global mean, linear

A block is HetConv-BN-ReLU-HetConv-BN plus its input (a 1×1 conv and BN where the shape changes), then ReLU (He et al.,
CVPR 2016, with the convolutions of Singh et al., CVPR 2019). The wide layers are at 14×14 and below, where a HetConv's saving is
largest and activations are few; there is no op whose INT8 form is slow.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import check_positive
from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.nets.common import Classifier, conv_bn_relu, input_size


class HetBlock(nn.Module):
    """Two 3×3 HetConvs with a skip connection; (B, M, H, W) -> (B, N, ⌈H/s⌉, ⌈W/s⌉)."""

    def __init__(self, in_channels: int, out_channels: int, p: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = HetConv2d(in_channels, out_channels, 3, p, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = HetConv2d(out_channels, out_channels, 3, p, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, ⌈H/s⌉, ⌈W/s⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        output: Tensor = self.relu2(y)
        return output


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
    size = input_size("hetnet", in_channels, resolution)
    for count in blocks:
        check_positive("hetnet", "blocks", count)
    if width < 2 or width % 2:
        raise UsageError(f"hetnet: width is {width}, expected an even number of at least 2")
    channels = width // 2
    layers: list[nn.Module] = [conv_bn_relu(in_channels, channels)]
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(HetBlock(channels, width << stage, p, stride=2 if block == 0 else 1))
            channels = width << stage
    return Classifier("hetnet", nn.Sequential(*layers), channels, num_classes, size)
