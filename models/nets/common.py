"""What all networks share: the form of an image classifier, the check of its arguments, and the small parts of most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import check_factor, check_positive


class Classifier(nn.Module):
    """Features, global mean, linear: float32 (B, C, H, W) -> logits (B, num_classes).

    Args:
        name: what an error message calls the network.
        features: maps (B, C, H, W) to (B, channels, H', W').
        channels: of the features.
        num_classes: length of the output.
        input_size: (C, H, W) that the network is made for; other H and W work where the strides allow it.
        head: from the means of the features (B, channels) to the logits; by default one linear layer.

    Raises:
        UsageError: ``num_classes`` is below 1.
    """

    def __init__(
        self,
        name: str,
        features: nn.Module,
        channels: int,
        num_classes: int,
        input_size: tuple[int, int, int],
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_positive(name, "num_classes", num_classes)
        self.features = features
        self.head = nn.Linear(channels, num_classes) if head is None else head
        self.input_size = input_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        # A mean, not adaptive average pooling: every exporter takes it, also with a dynamic batch.
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def input_size(name: str, in_channels: int, resolution: int, least: int = 8) -> tuple[int, int, int]:
    """The (C, H, W) of a network, checked.

    Raises:
        UsageError: there are no channels, or the resolution is no integer or below ``least``.
    """
    check_positive(name, "in_channels", in_channels)
    check_positive(name, "resolution", resolution)
    if resolution < least:
        raise UsageError(f"{name}: resolution is {resolution}, expected at least {least}")
    return in_channels, resolution, resolution


def conv_bn_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Conv2d without bias, BatchNorm, activation; the size of the image is kept at stride 1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        activation(),
    )


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """``channels`` times the width multiplier, as the nearest positive multiple of ``divisor`` (MobileNet's rule).

    At most 10 % below the exact product.

    Raises:
        UsageError: ``width`` is not above 0, or not finite.
    """
    check_factor("network", "width", width)
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * exact else rounded + divisor


def fitting_strides(resolution: int, wanted: Sequence[int], least: int = 4) -> tuple[int, ...]:
    """The strides of a network's layers for an image of side ``resolution``.

    A stride of 2 becomes 1 where the map would fall below ``least``. The first layer keeps the size of images below 64 pixels:
    their detail is of the size of a kernel.
    """
    strides = []
    size = resolution
    for index, stride in enumerate(wanted):
        keeps = stride == 1 or (index == 0 and resolution < 64) or (size + 1) // 2 < least
        strides.append(1 if keeps else stride)
        size = size if keeps else (size + 1) // 2
    return tuple(strides)
