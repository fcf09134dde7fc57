"""Reductions over axes that an attribute or, in newer opsets, a constant input names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.op import Handler, Op


def reduction(function: Callable[..., Any]) -> Handler:
    """The handler of a reduction ``function(x, axes, keepdim)``."""

    def handler(op: Op) -> Operand:
        x = op[0]
        given = op.ints(1, "axes")
        if not given and op.integer("noop_with_empty_axes", 0):
            return x
        axes = op.axes(given, len(x.shape)) if given else list(range(len(x.shape)))
        return op.call(function, x, axes, bool(op.integer("keepdims", 1)))

    return handler


def argument(function: Callable[..., Any]) -> Handler:
    """ArgMax or ArgMin."""

    def handler(op: Op) -> Operand:
        if op.integer("select_last_index", 0):
            op.refuse("wants the last of equal values")
        x = op[0]
        return op.call(function, x, op.axis(op.integer("axis", 0), len(x.shape)), bool(op.integer("keepdims", 1)))

    return handler


def product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """The product over several axes."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim)
    return x


def absolute(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """The sum of absolute values."""
    return x.abs().sum(axes, keepdim)


def euclidean(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """The root of the sum of squares."""
    return (x * x).sum(axes, keepdim).sqrt()


def squares(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """The sum of squares."""
    return (x * x).sum(axes, keepdim)
