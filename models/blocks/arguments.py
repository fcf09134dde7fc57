"""The arguments that all blocks share, checked once and with one wording: by the constructors, and by the formulas.

Every convolutional block is made as ``Block(in_channels, out_channels, kernel_size, …)`` and takes ``stride``, ``padding``,
``dilation`` and ``bias`` with the meaning that they have in `torch.nn.Conv2d`. A number must be an integer by its type: 8.0
and true are refused. All checks take the name of the block, which their `UsageError` begins with.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor

from edgefold.errors import UsageError, unknown_name

IntPair = int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The geometry of a 2-D convolution, every part as (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def taps(self) -> int:
        """K²: the entries of one kernel."""
        return math.prod(self.kernel_size)

    @property
    def strided(self) -> bool:
        """Whether a stride is above 1."""
        return max(self.stride) > 1

    @property
    def centred(self) -> bool:
        """Whether the padding is d(K−1)/2, so that stride 1 keeps the size of every image."""
        parts = zip(self.padding, self.dilation, self.kernel_size, strict=True)
        return all(2 * p == d * (k - 1) for p, d, k in parts)

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(H', W') for an input of (H, W): ⌊(H + 2p − d(K−1) − 1)/s⌋ + 1."""
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's integers are Integral too


def check_positive(block: str, name: str, value: object) -> None:
    """Raises a `UsageError` unless ``value`` is an integer of at least 1."""
    if not _is_integer(value):
        raise UsageError(f"{block}: {name} is {value!r}, expected an integer of at least 1")
    if value < 1:
        raise UsageError(f"{block}: {name} is {value}, expected at least 1")


def check_pair(block: str, name: str, value: object, least: int = 1) -> tuple[int, int]:
    """One or two integers as (height, width).

    Raises:
        UsageError: not one or two integers, or one below ``least``.
    """
    parts = tuple(value) if isinstance(value, tuple | list) else (value, value)
    fit = [int(part) for part in parts if _is_integer(part) and part >= least]
    if len(parts) != 2 or len(fit) != 2:
        raise UsageError(f"{block}: {name} is {value!r}, expected one or two integers of at least {least}")
    return fit[0], fit[1]


def check_places(block: str, name: str, size: object) -> int:
    """H·W of an image of (H, W), checked like `check_pair`."""
    return math.prod(check_pair(block, name, size))


def check_odd(block: str, name: str, value: object) -> None:
    """Raises a `UsageError` unless ``value`` is an odd integer of at least 1."""
    if not _is_integer(value) or value < 1 or value % 2 == 0:
        raise UsageError(f"{block}: {name} is {value!r}, expected an odd number of at least 1")


def check_factor(block: str, name: str, value: object) -> None:
    """Raises a `UsageError` unless ``value`` is a number above 0, and a finite one."""
    if not isinstance(value, Real) or isinstance(value, bool) or not (math.isfinite(value) and float(value) > 0):
        raise UsageError(f"{block}: {name} is {value!r}, expected a positive number")


def check_flag(block: str, name: str, value: object) -> None:
    """Raises a `UsageError` unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{block}: {name} is {value!r}, expected True or False")


def check_name(kind: str, name: object, valid: Collection[str]) -> None:
    """Raises a `UsageError`, with the nearest valid name, unless ``name`` is one of them."""
    if not isinstance(name, str) or name not in valid:
        raise unknown_name(kind, str(name), valid)


def check_channels(block: str, in_channels: object, out_channels: object) -> None:
    """Raises a `UsageError` unless both channel counts are positive integers."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        check_positive(block, name, value)


def check_divides(block: str, divisor: tuple[str, int], **counts: int) -> None:
    """Raises a `UsageError` unless the divisor, a (name, value) pair, divides each of the named counts."""
    name, value = divisor
    check_positive(block, name, value)
    for other, count in counts.items():
        if count % value:
            raise UsageError(f"{block}: {name}={value} does not divide {other}={count}; choose a divisor of {count}")


def check_geometry(block: str, kernel_size: object, stride: object, padding: object, dilation: object) -> Geometry:
    """The geometry with every part as a pair.

    Raises:
        UsageError: a part is not one or two integers, a size is below 1, or the padding below 0.
    """
    return Geometry(
        check_pair(block, "kernel_size", kernel_size),
        check_pair(block, "stride", stride),
        check_pair(block, "padding", padding, least=0),
        check_pair(block, "dilation", dilation),
    )


def check_convolution(
    block: str,
    in_channels: object,
    out_channels: object,
    kernel_size: object,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    bias: object = False,
) -> Geometry:
    """All the arguments that convolutions share; the geometry with every part as a pair.

    Raises:
        UsageError: an argument is out of range.
    """
    check_channels(block, in_channels, out_channels)
    check_flag(block, "bias", bias)
    return check_geometry(block, kernel_size, stride, padding, dilation)


def unit_geometry(block: str, kernel_size: object, stride: object, padding: object, dilation: object) -> Geometry:
    """Like `check_geometry`, but no padding (None) stands for d(K−1)/2, rounded down, which keeps the size at stride 1."""
    if padding is None:
        sides, steps = check_pair(block, "kernel_size", kernel_size), check_pair(block, "dilation", dilation)
        padding = tuple(d * (k - 1) // 2 for k, d in zip(sides, steps, strict=True))
    return check_geometry(block, kernel_size, stride, padding, dilation)


def check_joinable(block: str, geometry: Geometry, other: str) -> None:
    """Raises a `UsageError` unless a branch of this geometry gives the size of ``other``, which it is joined with."""
    if not geometry.centred:
        raise UsageError(
            f"{block}: kernel_size {geometry.kernel_size} with padding {geometry.padding} and dilation {geometry.dilation} "
            f"gives another size than {other}, which it is joined with; take an odd kernel and the default padding, d(K−1)/2"
        )


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
