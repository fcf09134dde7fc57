"""Pools. The last window of torch and of ONNX begins inside of the image in ``ceil_mode``, so that sizes agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.op import Op, Result
from edgefold.models.from_onnx.windows import Windows, windows


def max_pool(op: Op) -> Result:
    """MaxPool without indices.

    Uneven pads need no values to be written: torch's even padding, more windows than wanted, and a crop give the same, as long as
    the windows at the end reach far enough.
    """
    if len(op.node.outputs) > 1:
        op.refuse("gives indices")
    x, w, wanted = _geometry(op)
    pool: Callable[..., Any] = F.max_pool1d if len(w.kernel) == 1 else F.max_pool2d
    for ceil in (False, True):
        even = Windows(w.kernel, w.stride, w.dilation, w.before, w.before)
        given = even.outputs(x.shape[2:], ceil)
        # Torch pads by half a window at most.
        if all(g >= n for g, n in zip(given, wanted, strict=True)) and all(
            2 * b <= k for b, k in zip(w.before, w.kernel, strict=True)
        ):
            y = op.call(pool, x, list(w.kernel), list(w.stride), list(w.before), list(w.dilation), ceil)
            return _cropped(op, y, wanted)
    lowest = torch.finfo(torch.float32).min
    after = [max(0, (n - 1) * s + span - size - b) for n, s, span, size, b in _ends(w, wanted, x)]
    padded = Windows(w.kernel, w.stride, w.dilation, w.before, tuple(after))
    x = op.call(F.pad, x, padded.pads, value=lowest)
    return _cropped(op, op.call(pool, x, list(w.kernel), list(w.stride), 0, list(w.dilation), False), wanted)


def average_pool(op: Op) -> Operand:
    """AveragePool, counting the pads or not."""
    x, w, wanted = _geometry(op)
    counted = bool(op.integer("count_include_pad", 0))
    ceil = bool(op.integer("ceil_mode", 0))
    pool: Callable[..., Any] = F.avg_pool1d if len(w.kernel) == 1 else F.avg_pool2d
    fits = all(2 * b <= k for b, k in zip(w.before, w.kernel, strict=True))
    if w.even and fits and set(w.dilation) == {1}:
        y = op.call(pool, x, list(w.kernel), list(w.stride), list(w.before), ceil, counted)
        return _cropped(op, y, wanted)
    if set(w.dilation) != {1}:
        op.refuse("has dilations")
    # Sums over the padded image, over the number of places that count in each window.
    after = [max(0, (n - 1) * s + span - size - b) for n, s, span, size, b in _ends(w, wanted, x)]
    padded = Windows(w.kernel, w.stride, w.dilation, w.before, tuple(after))
    sums = _cropped(op, op.call(pool, op.call(F.pad, x, padded.pads), list(w.kernel), list(w.stride)), wanted)
    places = torch.ones(1, 1, *x.shape[2:])
    if counted:
        places = F.pad(places, w.pads, value=1.0)
        padded = Windows(w.kernel, w.stride, w.dilation, (0,) * len(after), _rest(after, w.after))
    share: Tensor = pool(F.pad(places, padded.pads), list(w.kernel), list(w.stride))
    share = share[(slice(None), slice(None), *(slice(n) for n in wanted))]
    return sums if bool((share == 1).all()) else op.call(torch.mul, sums, Operand(1 / share))


def global_average_pool(op: Op) -> Operand:
    """GlobalAveragePool."""
    return op.call(torch.mean, op[0], list(range(2, len(op[0].shape))), True)


def global_max_pool(op: Op) -> Operand:
    """GlobalMaxPool."""
    return op.call(torch.amax, op[0], list(range(2, len(op[0].shape))), True)


def _geometry(op: Op) -> tuple[Operand, Windows, tuple[int, ...]]:
    x = op[0]
    kernel = op.int_list("kernel_shape")
    if not kernel:
        op.refuse("has no kernel_shape")
    w = windows(op, tuple(kernel), x.shape[2:])
    same = op.text("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    wanted = w.outputs(x.shape[2:], bool(op.integer("ceil_mode", 0)) and not same)
    if min(wanted) < 1:
        op.refuse(f"has windows larger than its input of shape {x.shape}")
    return x, w, wanted


def _ends(w: Windows, wanted: tuple[int, ...], x: Operand) -> list[tuple[int, int, int, int, int]]:
    return list(zip(wanted, w.stride, w.spans(), x.shape[2:], w.before, strict=True))


def _rest(after: list[int], done: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(0, all_ - part) for all_, part in zip(after, done, strict=True))


def _cropped(op: Op, y: Operand, wanted: tuple[int, ...]) -> Operand:
    for axis, size in enumerate(wanted, start=2):
        if y.shape[axis] > size:
            y = op.call(torch.narrow, y, axis, 0, size)
    return y
