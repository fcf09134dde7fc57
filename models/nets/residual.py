"""Residual networks whose convolutions can be exchanged (He et al., CVPR 2016): the small ones here, and ResNet-20 and -56.

A block is conv-BN-ReLU-conv-BN plus its input (a 1×1 convolution and BN where the shape changes), then ReLU. ``conv`` is what
`edgefold.models.blocks.conv_factory` takes: ``"hetconv:4"``, ``"dual:2"``, or a constructor. The stem stays a dense convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import check_positive
from edgefold.models.blocks.choose import ConvFactory, conv_factory
from edgefold.models.nets.common import Classifier, conv_bn_act, input_size


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a skip connection; (B, M, H, W) -> (B, N, ⌈H/s⌉, ⌈W/s⌉)."""

    def __init__(self, in_channels: int, out_channels: int, conv: ConvFactory, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(out_channels, out_channels, 3, stride=1, padding=1, bias=False)
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


def small_residual(
    name: str,
    conv: ConvFactory,
    num_classes: int,
    in_channels: int,
    width: int,
    resolution: int,
    blocks: Sequence[int],
) -> Classifier:
    """A stem of w/2 channels at full size, then stages of w·2^i channels, each halving the size.

    Raises:
        UsageError: an argument is out of range.
    """
    size = input_size(name, in_channels, resolution)
    for count in blocks:
        check_positive(name, "blocks", count)
    if width < 2 or width % 2:
        raise UsageError(f"{name}: width is {width}, expected an even number of at least 2")
    channels = width // 2
    layers: list[nn.Module] = [conv_bn_act(in_channels, channels)]
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(ResidualBlock(channels, width << stage, conv, stride=2 if block == 0 else 1))
            channels = width << stage
    return Classifier(name, nn.Sequential(*layers), channels, num_classes, size)


def resnet_small(
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 32,
    resolution: int = 28,
    conv: str | ConvFactory = "standard",
    blocks: Sequence[int] = (2, 2, 1),
) -> Classifier:
    """The network of `edgefold.models.nets.hetnet` with any convolution.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the first stage, even; each further stage has twice as many.
        resolution: side of the image.
        conv: the convolution of the blocks.
        blocks: residual blocks of each stage.

    Raises:
        UsageError: an argument is out of range, or the convolution does not fit a layer.
    """
    return small_residual("resnet_small", conv_factory(conv), num_classes, in_channels, width, resolution, blocks)


def _resnet(
    name: str, depth: int, num_classes: int, in_channels: int, width: int, resolution: int, conv: str | ConvFactory
) -> Classifier:
    size = input_size(name, in_channels, resolution)
    check_positive(name, "width", width)
    factory = conv_factory(conv)
    layers: list[nn.Module] = [conv_bn_act(in_channels, width)]
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            layers.append(ResidualBlock(channels, width << stage, factory, stride=2 if stage and block == 0 else 1))
            channels = width << stage
    return Classifier(name, nn.Sequential(*layers), channels, num_classes, size)


def resnet20(
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 16,
    resolution: int = 28,
    conv: str | ConvFactory = "standard",
) -> Classifier:
    """ResNet-20 for small images: three stages of three blocks, w, 2w and 4w channels.

    Args:
        num_classes: length of the output.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the first stage.
        resolution: side of the image.
        conv: the convolution of the blocks, as in the HetConv paper.

    Raises:
        UsageError: an argument is out of range, or the convolution does not fit a layer.
    """
    return _resnet("resnet20", 20, num_classes, in_channels, width, resolution, conv)


def resnet56(
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 16,
    resolution: int = 28,
    conv: str | ConvFactory = "standard",
) -> Classifier:
    """ResNet-56 for small images: three stages of nine blocks; the arguments are those of `resnet20`."""
    return _resnet("resnet56", 56, num_classes, in_channels, width, resolution, conv)
