"""What one proven call showed, and by its work whether one convolution in its place would be dearer."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor

from edgefold.export.fold.affine import Scope
from edgefold.export.fold.cost import effective_macs
from edgefold.export.fold.field import Field
from edgefold.export.fold.kernel import Kernel
from edgefold.export.fold.locate import NotOneKernelError
from edgefold.export.fold.probe import padding_of, reaching_zero
from edgefold.export.fold.read import Form, kernel_of
from edgefold.export.fold.structure import read_structure

_LOOP = 16  # convolutions of one channel
# A convolution of one output leaves the other lanes of a vector idle: one of several outputs costs as much for as many times the
# multiply-accumulates, so that kernels of mixed sizes may all become the largest. Runtimes gain up to 16 times; less is trusted.
_LANES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one proven call showed: shapes, work, and for huge functions the call itself as (input, output)."""

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    macs: int
    ops: int
    computed: int
    convolutions: int
    written_out: bool  # has none, but products that are added
    field: Field | None
    foreign: frozenset[int]
    parameters: Set[int]  # storages
    pair: tuple[Tensor, Tensor] | None = None
    kernel: Kernel | None = None  # read off its code; to be checked like one that is probed
    fixed: bool = False  # takes inputs of this size only, in batches of this size


def evidence(
    scope: Scope,
    x: Tensor,
    y: Tensor,
    field: Field | None,
    pair: tuple[Tensor, Tensor] | None = None,
    form: Form | None = None,
) -> Evidence:
    """What a sound scope showed, for a call from x to y whose ``form`` may be known."""
    return Evidence(
        tuple(x.shape),
        tuple(y.shape),
        x.dtype,
        scope.macs,
        scope.ops,
        scope.computed,
        scope.convolutions,
        scope.written_out,
        field,
        frozenset(scope.foreign),
        scope.parameters,
        pair,
        _read(form, field, tuple(x.shape), tuple(y.shape)) if field is not None and form is not None else None,
    )


def _read(form: Form, field: Field, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Kernel | None:
    axes = tuple(reaching_zero(axis) for axis in field.axes)
    try:
        padding = tuple(map(padding_of, axes, shape[2:], out_shape[2:]))
    except NotOneKernelError:
        return None
    # The proof is still at work, and would follow each weight of a loop.
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return kernel_of(form, axes, shape[1], out_shape[1], padding)


def macs_of_kernel(kernel: Kernel, out_shape: tuple[int, ...]) -> int:
    """The effective multiply-accumulates of one sample, with an output of this shape."""
    return effective_macs(read_structure(kernel.weight, kernel.groups), math.prod(out_shape[2:]))


def too_dear(kernel: Kernel, call: Evidence) -> str:
    """Why the kernel costs more than the call in its own form; empty if it does not."""
    before, after = call.macs, macs_of_kernel(kernel, call.out_shape) * call.shape[0]
    if call.written_out:  # shifted slices that leave out the border have no products there
        share = kernel.share_inside(call.shape[2:], call.out_shape[2:])
    else:
        share = 1 / min(_LANES, _side_by_side(kernel)) if _is_loop(kernel, call) else 1
    if after * share <= before:
        return ""
    return f"one convolution would need {after:,} multiply-accumulates, its own form needs {before:,}"


def _side_by_side(kernel: Kernel) -> int:
    """The outputs that are computed together: those of one group, or the channels of a depthwise convolution."""
    outputs, inputs = kernel.weight.shape[:2]
    return outputs if inputs == 1 else outputs // kernel.groups


def _is_loop(kernel: Kernel, call: Evidence) -> bool:
    """Whether a call is many convolutions of one channel each, as far as their number and their work tell."""
    positions, taps = call.shape[0] * math.prod(call.out_shape[2:]), math.prod(kernel.weight.shape[2:])
    return call.convolutions >= _LOOP and call.macs <= call.convolutions * positions * taps
