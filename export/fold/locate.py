"""Where an affine function reads: its stride and its first and last tap, found by lighting one line of the input at a time.

For each axis, sample i holds random values on line i of that axis and zeros elsewhere; the output lines that differ from f(0)
are those that read input line i. For a convolution, output q reads lines q * stride + first .. q * stride + last, except where
the border cuts; so the geometry is read from output lines whose reads end inside of the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgefold.export.fold.field import Axis, Field

Function = Callable[[Tensor], Tensor]

_LINES = 48  # at most so many lines of an axis are lit, around its middle
_TELLING = 20  # lines from which the middle is far from any border
_STRIDES = 8  # strides that are tried in any case
_CHUNK = 1 << 25  # elements of one batch of inputs


class NotOneKernelError(Exception):
    """The function is affine but no convolution; the message says why."""


def locate(f: Function, shape: tuple[int, ...], dtype: torch.dtype) -> Field:
    """The receptive field of f for inputs of ``shape`` (1, channels, *space).

    Raises:
        NotOneKernelError: the reads of f do not move with its output, or f does not depend on its input.
    """
    axes = tuple(_locate_axis(f, shape, axis, dtype) for axis in range(len(shape) - 2))
    return Field(axes, 1)


def moves(f: Function, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the answer to one lit point moves with the point along each axis, by some stride.

    A few small runs spare the probe of what cannot be a convolution, such as one whose output is permuted. An axis too short to
    tell counts as moving: near to the border a padding that reflects answers twice.
    """
    light = torch.randn(shape[1], dtype=dtype, generator=torch.Generator().manual_seed(0))
    blank = torch.zeros(2, *shape[1:], dtype=dtype)  # never a batch of one: code may treat it as a case of its own
    middle = [size // 2 for size in shape[2:]]
    zero = f(blank)[0]

    def response(point: list[int]) -> Tensor:
        x = blank.clone()
        spot: Any = (slice(None), slice(None), *point)
        x[spot] = light
        return f(x)[0] - zero

    here = response(middle)
    limit = 4096 * torch.finfo(dtype).eps * (here.abs().max() + zero.abs().max())

    def moves_along(axis: int) -> bool:
        size, outputs = shape[axis + 2], here.shape[axis + 1]
        if size < _TELLING or outputs < 3:
            return True
        for stride in range(1, max(_STRIDES, round(size / outputs)) + 1):
            there = response([min(place + stride * (axis == other), shape[other + 2] - 1) for other, place in enumerate(middle)])
            moved, still = there.narrow(axis + 1, 1, outputs - 1), here.narrow(axis + 1, 0, outputs - 1)
            if float((moved - still).abs().max()) <= limit:
                return True
        return False

    return all(moves_along(axis) for axis in range(len(middle)))


def _locate_axis(f: Function, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> Axis:
    size = shape[axis + 2]
    lines = range(size) if size <= _LINES else range((size - _LINES) // 2, (size + _LINES) // 2)
    reads = _reads(f, shape, axis, lines, dtype)  # (lines, outputs)
    if not reads.any():
        raise NotOneKernelError("its output does not depend on its input")
    offsets = lines.start
    found = [(q, np.flatnonzero(reads[:, q]) + offsets) for q in range(reads.shape[1]) if reads[:, q].any()]
    most = max(len(taps) for _, taps in found)  # what the border cuts has fewer
    inner = [(q, taps) for q, taps in found if taps[0] > lines.start and taps[-1] < lines.stop - 1 and len(taps) == most]
    neighbours = [(one, two) for one, two in itertools.pairwise(inner) if two[0] == one[0] + 1]
    if neighbours:
        (_, taps), (_, following) = neighbours[len(neighbours) // 2]
        stride = int(following[0] - taps[0])
        inside = inner
    else:  # the kernel is as large as the input: the border cuts every read
        stride = max(1, round(size / reads.shape[1]))
        inside = found
    if stride < 1:
        raise NotOneKernelError("its reads do not move with its output")
    first = min(int(taps[0]) - q * stride for q, taps in inside)
    last = max(int(taps[-1]) - q * stride for q, taps in inside)
    if last - first >= 2 * size:
        raise NotOneKernelError("its reads do not move with its output")
    return Axis(stride, first, last)


def _reads(f: Function, shape: tuple[int, ...], axis: int, lines: range, dtype: torch.dtype) -> np.ndarray:
    """Booleans (lines, outputs along the axis): whether the output line reads the input line."""
    generator = torch.Generator().manual_seed(axis)
    blank = torch.zeros(shape, dtype=dtype)
    zero = f(blank.expand(2, *shape[1:]).contiguous())[:1]
    light = torch.randn(shape, dtype=dtype, generator=generator)
    step = max(2, _CHUNK // blank.numel())
    changed: list[Tensor] = []
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        batch = blank.repeat(max(2, len(part)), *(1,) * (len(shape) - 1))
        for sample, line in enumerate(part):
            batch[sample].select(axis + 1, line).copy_(light[0].select(axis + 1, line))
        difference = (f(batch) - zero).abs()[: len(part)]
        changed.append(difference.movedim(axis + 2, 1).flatten(2).amax(dim=2))  # (lines, outputs)
    response = torch.cat(changed)
    noise = 64 * torch.finfo(dtype).eps * (response.max() + zero.abs().max())
    result: np.ndarray = (response > noise).numpy()
    return result
