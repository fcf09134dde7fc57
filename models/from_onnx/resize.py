"""Resize and Upsample.

ONNX says which input place x an output place i reads: x = (i + 1/2)/s - 1/2 (half_pixel), i/s (asymmetric), i (n - 1)/(m - 1)
(align_corners), with s the scale, n and m the sizes. Torch knows some of these by name. So nearest places are computed here:
where they are those of torch's own call, that call is made, else the places are gathered.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.op import Op

_MAX_SIDE = 2**14
_LINEAR = {3: "linear", 4: "bilinear"}


def resize(op: Op) -> Operand:
    """Resize (opset 10 and later) and Upsample of the last one or two dimensions."""
    x = op[0]
    rank = len(x.shape)
    sizes, scales = _target(op, x.shape)
    if rank not in (3, 4) or sizes[:2] != x.shape[:2]:
        op.refuse(f"turns shape {x.shape} into {sizes}, expected new sizes in the last one or two of three or four dimensions")
    if sizes == x.shape:
        return x
    if min(sizes) < 1 or max(sizes) > _MAX_SIDE:
        op.refuse(f"gives the shape {sizes}, expected sides of 1 to {_MAX_SIDE}")
    mode = op.text("mode", "nearest")
    how = op.text("coordinate_transformation_mode", "asymmetric" if _is_old(op) else "half_pixel")
    if how == "tf_crop_and_resize" or op.integer("antialias", 0) or op.integer("exclude_outside", 0):
        op.refuse(f"crops, smooths or leaves out what lies outside (mode '{mode}', '{how}')")
    if mode == "nearest":
        return _nearest(op, x, sizes, scales, how)
    if mode != "linear":
        op.refuse(f"has mode '{mode}', expected nearest or linear")
    return _linear(op, x, sizes, scales, how)


def _is_old(op: Op) -> bool:
    return op.kind == "Upsample" or op.opset < 11


def _target(op: Op, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The new sizes, and the scales as the op gives them or as they follow from the sizes."""
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        op.refuse("keeps the aspect ratio")
    axes = op.axes(op.int_list("axes") or list(range(len(shape))), len(shape))
    place = 1 if _is_old(op) else 2
    wanted = op.ints(3) if op.get(3) is not None else None
    if wanted:
        if len(wanted) != len(axes):
            op.refuse(f"has {len(wanted)} sizes for {len(axes)} dimensions")
        by_axis = dict(zip(axes, wanted, strict=True))
        sizes = tuple(by_axis.get(axis, size) for axis, size in enumerate(shape))
        return sizes, tuple(new / old for new, old in zip(sizes, shape, strict=True))
    given = [float(scale) for scale in op.constant(place).reshape(-1).tolist()]
    if len(given) != len(axes) or not all(math.isfinite(scale) and scale > 0 for scale in given):
        op.refuse(f"has scales {given} for {len(axes)} dimensions")
    factors = dict(zip(axes, given, strict=True))
    scales = tuple(factors.get(axis, 1.0) for axis in range(len(shape)))
    return tuple(math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)), scales


def _nearest(op: Op, x: Operand, sizes: tuple[int, ...], scales: tuple[float, ...], how: str) -> Operand:
    rounding = op.text("nearest_mode", "floor" if _is_old(op) else "round_prefer_floor")
    places = [_places(op, n, m, s, how, rounding) for n, m, s in zip(x.shape[2:], sizes[2:], scales[2:], strict=True)]
    for mode in ("nearest", "nearest-exact"):
        if all(_torch_places(n, m, mode) == found for n, m, found in zip(x.shape[2:], sizes[2:], places, strict=True)):
            return op.call(F.interpolate, x, _given(x, sizes), _factors(x, sizes), mode)
    for axis, found in enumerate(places, start=2):
        if found != list(range(x.shape[axis])):
            x = op.call(torch.index_select, x, axis, Operand(torch.tensor(found)))
    return x


def _places(op: Op, n: int, m: int, scale: float, how: str, rounding: str) -> list[int]:
    rules: dict[str, Any] = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda at: math.ceil(at - 0.5),
        "round_prefer_ceil": lambda at: math.floor(at + 0.5),
    }
    if rounding not in rules:
        op.refuse(f"has nearest_mode '{rounding}'")
    found = []
    for index in range(m):
        at = {
            "asymmetric": index / scale,
            "half_pixel": (index + 0.5) / scale - 0.5,
            "pytorch_half_pixel": (index + 0.5) / scale - 0.5 if m > 1 else 0.0,
            "align_corners": index * (n - 1) / (m - 1) if m > 1 else 0.0,
        }.get(how)
        if at is None:
            op.refuse(f"has coordinate_transformation_mode '{how}'")
        found.append(min(max(int(rules[rounding](at)), 0), n - 1))
    return found


def _torch_places(n: int, m: int, mode: str) -> list[int]:
    """Which places torch's own nearest mode reads."""
    line = torch.arange(n, dtype=torch.float32).reshape(1, 1, n)
    return [int(place) for place in F.interpolate(line, m, mode=mode).reshape(-1).tolist()]


def _linear(op: Op, x: Operand, sizes: tuple[int, ...], scales: tuple[float, ...], how: str) -> Operand:
    pairs = list(zip(x.shape[2:], sizes[2:], scales[2:], strict=True))
    exact = all(math.isclose(m / n, s, rel_tol=1e-6) for n, m, s in pairs)
    single = any(m == 1 and n > 1 for n, m, _ in pairs)
    known = how in ("half_pixel", "align_corners") or (how == "pytorch_half_pixel" and not single)
    if not known or (how != "align_corners" and not exact):
        op.refuse(
            f"is linear with '{how}' from {x.shape[2:]} to {sizes[2:]}, expected half_pixel or align_corners and whole sizes"
        )
    corners = how == "align_corners"
    return op.call(F.interpolate, x, _given(x, sizes), _factors(x, sizes), _LINEAR[len(sizes)], corners)


def _factors(x: Operand, sizes: tuple[int, ...]) -> list[float] | None:
    """Whole factors, with which every runtime is at ease; ``None`` where they are not whole."""
    if all(new % old == 0 for new, old in zip(sizes, x.shape, strict=True)):
        return [float(new // old) for new, old in zip(sizes[2:], x.shape[2:], strict=True)]
    return None


def _given(x: Operand, sizes: tuple[int, ...]) -> list[int] | None:
    return None if _factors(x, sizes) else list(sizes[2:])
