"""The arguments that all blocks share, checked once and with one wording.

Every convolutional block is made as ``Block(in_channels, out_channels, kernel_size, …)`` and takes ``stride``, ``padding``,
``dilation`` and ``bias`` with the meaning that they have in `torch.nn.Conv2d`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from edgefold.errors import UsageError

IntPair = int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The geometry of a 2-D convolution, every part as (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(H', W') for an input of (H, W): ⌊(H + 2p − d(K−1) − 1)/s⌋ + 1."""
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width


def pair(value: IntPair) -> tuple[int, int]:
    """A number as (height, width); a pair stays as it is."""
    return (value, value) if isinstance(value, int) else value


def check_channels(block: str, in_channels: int, out_channels: int) -> None:
    """Raises a `UsageError` unless both channel counts are positive."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        check_positive(block, name, value)


def check_positive(block: str, name: str, value: int) -> None:
    """Raises a `UsageError` unless ``value`` is at least 1."""
    if value < 1:
        raise UsageError(f"{block}: {name} is {value}, expected at least 1")


def check_divides(block: str, divisor: tuple[str, int], **counts: int) -> None:
    """Raises a `UsageError` unless the divisor, a (name, value) pair, divides each of the named counts."""
    name, value = divisor
    check_positive(block, name, value)
    for other, count in counts.items():
        if count % value:
            raise UsageError(f"{block}: {name}={value} does not divide {other}={count}; choose a divisor of {count}")


def check_geometry(block: str, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair) -> Geometry:
    """The geometry with every part as a pair.

    Raises:
        UsageError: a size is below 1, or the padding below 0.
    """
    geometry = Geometry(pair(kernel_size), pair(stride), pair(padding), pair(dilation))
    for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        value: tuple[int, int] = getattr(geometry, name)
        if len(value) != 2 or min(value) < least:
            raise UsageError(f"{block}: {name} is {value}, expected one or two integers of at least {least}")
    return geometry


@dataclass(frozen=True, slots=True)
class CentreOffset:
    """What a 1×1 convolution needs to read where the centre tap of a K×K convolution does: p − d(K−1)/2 as padding or crop."""

    padding: tuple[int, int]
    crop: tuple[int, int]


def centre_offset(block: str, geometry: Geometry) -> CentreOffset:
    """How a 1×1 convolution of the same stride lines up with the centre of a kernel.

    Raises:
        UsageError: the kernel has an even side, and with it no centre.
    """
    height, width = geometry.kernel_size
    if height % 2 == 0 or width % 2 == 0:
        raise UsageError(
            f"{block}: kernel_size is ({height}, {width}), expected odd sides, because a 1×1 kernel sits at the centre"
        )
    top, left = (p - d * (k // 2) for p, d, k in zip(geometry.padding, geometry.dilation, geometry.kernel_size, strict=True))
    return CentreOffset((max(top, 0), max(left, 0)), (max(-top, 0), max(-left, 0)))


def crop(x: Tensor, border: tuple[int, int]) -> Tensor:
    """(B, C, H, W) without ``border`` (rows, columns) on each side."""
    rows, columns = border
    return F.pad(x, (-columns, -columns, -rows, -rows)) if rows or columns else x


def same_padding(kernel_size: IntPair, dilation: IntPair = 1) -> tuple[int, int]:
    """The padding that keeps the size of the image at stride 1; for odd kernels."""
    height, width = (d * (k - 1) // 2 for k, d in zip(pair(kernel_size), pair(dilation), strict=True))
    return height, width
