"""What a tensor sees of the input: the receptive field, a hint that tells the probe where to look.

Output position q along an axis reads the input positions q * stride + first .. q * stride + last. A convolution with kernel
k, stride s, padding p and dilation d composes as

    stride' = stride * s,   first' = first - stride * p,   last' = last + stride * (d * (k - 1) - p)

and a sum of branches takes the hull. ``blocks`` says that the channels fall into that many equal contiguous blocks which do
not mix; it is 0 while each channel is alone, as in the pieces of a split that depthwise convolutions of mixed sizes take. Both
are hints only: where an op moves pixels or channels in a way that is not followed here, there is no hint, and a wrong one is
found by the check of the folded layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from torch import Tensor
from torch._ops import OpOverload


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: output q reads the inputs q * stride + first .. q * stride + last."""

    stride: int
    first: int
    last: int

    @property
    def extent(self) -> int:
        """The number of input positions from the first to the last."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Field:
    """The receptive field of a tensor, and into how many blocks its channels fall: 0 where each is alone, however many."""

    axes: tuple[Axis, ...]
    blocks: int

    @property
    def taps(self) -> int:
        """The number of input positions that one output position reads at most."""
        return math.prod(axis.extent for axis in self.axes)

    def blocks_of(self, inputs: int, outputs: int) -> int:
        """The blocks of a map from ``inputs`` to ``outputs`` channels."""
        blocks = self.blocks or inputs
        return blocks if inputs % blocks == outputs % blocks == 0 else 1


def whole(ndim: int) -> Field:
    """The field of the input itself, with ``ndim`` spatial axes."""
    return Field((Axis(1, 0, 0),) * ndim, 0)


_SAME = frozenset(
    {
        *("alias", "clone", "contiguous", "detach", "lift_fresh", "_to_copy", "copy_", "neg"),
        *("mul", "mul_", "div", "div_", "add", "add_", "sub", "sub_", "rsub"),
        *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
    }
)
_PIECES = frozenset({"slice", "narrow", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "cat"})
_CHANNEL_MOVES = frozenset(
    {
        *("select", "index", "index_select", "permute", "transpose", "native_channel_shuffle", "unbind", "stack"),
        *("unsqueeze", "squeeze", "view", "_unsafe_view", "_reshape_alias"),
    }
)


def advance(op: OpOverload, args: Sequence[Any], inputs: Sequence[tuple[Tensor, Field | None]], out: Tensor) -> Field | None:
    """The field of ``out``, or None when it is not followed.

    ``inputs`` are the operands that depend on the input, with their fields.
    """
    fields = [field for _, field in inputs]
    if None in fields:
        return None
    hull = fields[0] if len(fields) == 1 else reduce(join, fields)
    if hull is None:
        return None
    source = inputs[0][0]
    ndim = len(hull.axes)
    name = op._opname
    if name == "convolution":
        if args[6] or source.ndim != ndim + 2:
            return None
        return convolved(hull, tuple(args[1].shape), tuple(args[3]), tuple(args[4]), tuple(args[5]), args[8])
    if source.shape[-ndim:] != out.shape[-ndim:]:
        return None
    if name in _SAME:
        return hull if source.shape == out.shape else None
    if name in _PIECES:
        return in_pieces(hull)
    if name in _CHANNEL_MOVES:
        return hull if hull.blocks == 1 else Field(hull.axes, 1)
    return None


def in_pieces(field: Field) -> Field:
    """The field of some of the channels, or of several pieces put together."""
    return field if field.blocks <= 1 else Field(field.axes, 1)


@lru_cache(maxsize=4096)
def convolved(
    field: Field,
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Field | None:
    """The field after a convolution with a weight of shape (N, M / groups, *kernel)."""
    if len(weight) != len(field.axes) + 2:
        return None
    axes = tuple(
        Axis(axis.stride * s, axis.first - axis.stride * p, axis.last + axis.stride * (d * (k - 1) - p))
        for axis, k, s, p, d in zip(field.axes, weight[2:], stride, padding, dilation, strict=True)
    )
    depthwise = groups > 1 and weight[:2] == (groups, 1)
    return Field(axes, field.blocks if depthwise else math.gcd(field.blocks, groups))


@lru_cache(maxsize=4096)
def join(left: Field | None, right: Field | None) -> Field | None:
    """The hull of two fields of one tensor, or of two that are added."""
    if left is None or right is None or left is right:
        return left if right is not None else None
    if left == right:
        return left
    pairs = list(zip(left.axes, right.axes, strict=True))
    if any(one.stride != two.stride for one, two in pairs):
        return None
    axes = tuple(Axis(one.stride, min(one.first, two.first), max(one.last, two.last)) for one, two in pairs)
    return Field(axes, math.gcd(left.blocks, right.blocks))
