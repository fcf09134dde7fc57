"""A recovered convolution as plain data, and the module that computes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLVE = {1: F.conv1d, 2: F.conv2d}


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """y = weight * pad(x) + bias, with weight (N, M / groups, *kernel) and padding as (before, after) for each axis."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: str = "constant"  # how the border is padded, as in F.pad

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of x (batch, M, *space)."""
        return convolve(self, x, self.weight, self.bias)

    @property
    def geometry(self) -> str:
        """In one line: "32->64 k3x3 s1x1 p1,1,1,1 d1x1 g1" (padding as before, after for each axis)."""
        kernel, stride, dilation = ("x".join(map(str, one)) for one in (self.weight.shape[2:], self.stride, self.dilation))
        padding = ",".join(str(size) for pair in self.padding for size in pair)
        border = "" if self.mode == "constant" else f" {self.mode}"
        return (
            f"{self.weight.shape[1] * self.groups}->{self.weight.shape[0]} k{kernel} s{stride} p{padding}{border} "
            f"d{dilation} g{self.groups}"
        )

    def share_inside(self, sizes: Sequence[int], outputs: Sequence[int]) -> float:
        """The share of all (tap, output) pairs that read an input of these ``sizes``, and no padding around it."""
        share = 1.0
        for axis, (size, count) in enumerate(zip(sizes, outputs, strict=True)):
            taps = self.weight.shape[axis + 2]
            reads = (
                output * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis][0]
                for output in range(count)
                for tap in range(taps)
            )
            share *= sum(0 <= position < size for position in reads) / (count * taps)
        return share

    def to(self, dtype: torch.dtype) -> Kernel:
        """The same kernel in another floating type."""
        return replace(self, weight=self.weight.to(dtype), bias=self.bias.to(dtype))


def convolve(kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with the geometry of ``kernel`` and these weights."""
    symmetric = kernel.mode == "constant" and all(before == after for before, after in kernel.padding)
    padding = [before for before, _ in kernel.padding] if symmetric else [0] * len(kernel.padding)
    if not symmetric:
        x = F.pad(x, [size for pair in reversed(kernel.padding) for size in pair], mode=kernel.mode)
    conv = _CONVOLVE[len(kernel.padding)]
    return conv(x, weight, bias, kernel.stride, padding, kernel.dilation, kernel.groups)


class FoldedConv(nn.Module):
    """A folded layer in place of the module that it was: one convolution, after a pad where the border needs one.

    Plain attributes of that module (``stride``, ``out_channels`` and the like) are kept for the code around it.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, kernel: Kernel, original: nn.Module | None = None) -> None:
        super().__init__()
        for name, value in vars(original).items() if original is not None else ():
            if not name.startswith("_") and name not in self.__dict__ and _is_plain(value):
                setattr(self, name, value)
        self.kernel = kernel
        self.weight = nn.Parameter(kernel.weight, requires_grad=False)
        self.bias = nn.Parameter(kernel.bias, requires_grad=False) if bool(kernel.bias.ne(0).any()) else None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (batch, M, *space)."""
        return convolve(self.kernel, x, self.weight, self.bias)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(member) for member in value)
    return isinstance(value, int | float | str | bool | None)


def canonical(kernel: Kernel) -> Kernel:
    """The same convolution with no empty taps around its kernel, the largest dilation and the most contiguous groups."""
    return _grouped(_dilated(_trimmed(kernel)))


def _trimmed(kernel: Kernel) -> Kernel:
    """Drops empty outer taps in pairs, so that a symmetric kernel stays symmetric."""
    weight, padding = kernel.weight, list(kernel.padding)
    for axis, dilation in enumerate(kernel.dilation):
        taps = _used(weight, axis)
        while len(taps) > 2 and not taps[0] and not taps[-1] and min(padding[axis]) >= dilation:
            taps = taps[1:-1]
            weight = weight.narrow(axis + 2, 1, len(taps))
            padding[axis] = (padding[axis][0] - dilation, padding[axis][1] - dilation)
    return replace(kernel, weight=weight.contiguous(), padding=tuple(padding))


def _dilated(kernel: Kernel) -> Kernel:
    """Turns taps at even distances with zeros between them into a dilation."""
    weight, dilation = kernel.weight, list(kernel.dilation)
    for axis in range(len(dilation)):
        taps = [index for index, used in enumerate(_used(weight, axis)) if used]
        size = weight.shape[axis + 2]
        step = math.gcd(*taps, size - 1)
        if step > 1:
            index = torch.arange(0, size, step)
            weight = weight.index_select(axis + 2, index)
            dilation[axis] *= step
    return replace(kernel, weight=weight.contiguous(), dilation=tuple(dilation))


def _used(weight: Tensor, axis: int) -> list[bool]:
    return [bool(used) for used in weight.ne(0).movedim(axis + 2, 0).flatten(1).any(dim=1)]


def _grouped(kernel: Kernel) -> Kernel:
    """Groups, where every kernel outside of equal contiguous blocks of channels is zero."""
    weight = kernel.weight
    used = weight.ne(0).flatten(2).any(dim=2)  # (N, M / groups)
    outputs, inputs = used.shape[0] // kernel.groups, used.shape[1]
    for split in _divisors(math.gcd(outputs, inputs)):
        blocks = used.view(kernel.groups, split, outputs // split, split, inputs // split)
        inside = torch.eye(split, dtype=torch.bool).view(1, split, 1, split, 1)
        if not bool((blocks & ~inside).any()):
            parts = weight.view(kernel.groups, split, outputs // split, split, inputs // split, *weight.shape[2:])
            kept = torch.stack([parts[:, index, :, index] for index in range(split)], dim=1)
            dense = kept.reshape(weight.shape[0], inputs // split, *weight.shape[2:])
            return replace(kernel, weight=dense.contiguous(), groups=kernel.groups * split)
    return kernel


def _divisors(number: int) -> Iterator[int]:
    """From the largest to 1."""
    return (candidate for candidate in range(number, 0, -1) if number % candidate == 0)
