"""Reading the coefficients of a loop off the code that ran, instead of probing for them.

In a loop of one-channel convolutions the proof sees each of them: it reads channels of the input as they are, and what it
gives is only added and concatenated. Then the kernel of the whole is known without another run: the weight of a convolution
with padding p and dilation d belongs to the taps -p + d t. A `Form` notes this for each tensor; where a tensor is made in any
other way, it has none. What is read is checked like what is probed: against the recorded run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgefold.export.fold.field import Axis
from edgefold.export.fold.kernel import Kernel

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A convolution of channels of the input, from ``channel`` on."""

    channel: int
    weight: Tensor
    bias: Tensor | None
    stride: Sizes
    padding: Sizes
    dilation: Sizes


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """A sum of two tensors of equal shape."""

    left: Form
    right: Form


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A concatenation along the channels, with the number of channels of each part."""

    parts: tuple[Form, ...]
    sizes: Sizes


@dataclass(frozen=True, slots=True, eq=False)
class Shifted:
    """A tensor plus one constant a channel."""

    form: Form
    shift: Tensor


Form = Leaf | Total | Rows | Shifted


def leaf(source: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Leaf | None:
    """The form of a convolution of x, a view of ``source``, or None if x is no run of whole channels.

    ``geometry`` is (stride, padding, dilation, groups).
    """
    stride, padding, dilation, groups = geometry
    strides, shape, whole = x.stride(), x.shape, source.shape
    if strides != source.stride() or shape[2:] != whole[2:] or shape[0] != whole[0] or groups != 1:
        return None
    if not strides[1]:
        return None
    channel, rest = divmod(int(x.storage_offset()) - int(source.storage_offset()), strides[1])
    return Leaf(channel, weight, bias, stride, padding, dilation) if rest == 0 else None


def kernel_of(
    form: Form, axes: tuple[Axis, ...], inputs: int, outputs: int, padding: tuple[tuple[int, int], ...]
) -> Kernel | None:
    """The convolution M -> N that a form is, with these reads and padding; None if its parts have different strides."""
    weight = torch.zeros(outputs, inputs, *(axis.extent for axis in axes), dtype=torch.float64)
    bias = torch.zeros(outputs, dtype=torch.float64)
    alike: dict[tuple[Sizes, Sizes, Sizes], list[tuple[int, Leaf]]] = {}
    stack: list[tuple[Form, int]] = [(form, 0)]
    while stack:
        one, row = stack.pop()
        match one:
            case Leaf():
                if one.stride != tuple(axis.stride for axis in axes):
                    return None
                alike.setdefault((tuple(one.weight.shape), one.padding, one.dilation), []).append((row, one))
            case Total():
                stack += [(one.left, row), (one.right, row)]
            case Rows():
                for part, size in zip(one.parts, one.sizes, strict=True):
                    stack.append((part, row))
                    row += size
            case Shifted():
                bias[row : row + one.shift.numel()] += one.shift
                stack.append((one.form, row))
    for (_, before, dilation), leaves in alike.items():
        _add(weight, bias, leaves, [-p - axis.first for p, axis in zip(before, axes, strict=True)], dilation)
    _, first = next(iter(alike.values()))[0]
    kernel = Kernel(weight, bias, tuple(axis.stride for axis in axes), padding, (1,) * len(axes), 1)
    return kernel.to(first.weight.dtype)


def _add(weight: Tensor, bias: Tensor, leaves: Sequence[tuple[int, Leaf]], first: Sequence[int], dilation: Sizes) -> None:
    """Adds the weights of leaves of one geometry, whose taps begin at ``first``, all at once."""
    outputs, inputs, *sizes = leaves[0][1].weight.shape
    taps = tuple(slice(f, f + d * (k - 1) + 1, d) for f, d, k in zip(first, dilation, sizes, strict=True))
    rows = torch.tensor([row for row, _ in leaves])[:, None] + torch.arange(outputs)  # (leaves, outputs)
    columns = torch.tensor([one.channel for _, one in leaves])[:, None] + torch.arange(inputs)  # (leaves, inputs)
    values = torch.stack([one.weight.detach() for _, one in leaves]).to(weight.dtype)
    weight[(slice(None), slice(None), *taps)].index_put_((rows[:, :, None], columns[:, None, :]), values, accumulate=True)
    for row, one in leaves:
        if one.bias is not None:
            bias[row : row + outputs] += one.bias
