"""Ops that move values without computing: shapes, slices, joins, pads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.op import Op, Result

if TYPE_CHECKING:
    import onnx_ir as ir


def reshape(op: Op) -> Operand:
    """Reshape, with 0 for a size that is kept and -1 for the rest."""
    x, wanted = op[0], op.ints(1) or []
    if not op.integer("allowzero", 0):
        if any(size == 0 and place >= len(x.shape) for place, size in enumerate(wanted)):
            op.refuse(f"keeps a size that its input of shape {x.shape} lacks")
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    known = math.prod(size for size in wanted if size != -1)
    total = x.value.numel()
    if wanted.count(-1) == 1 and known and total % known == 0:
        wanted = [total // known if size == -1 else size for size in wanted]
    if min(wanted, default=0) < 0 or math.prod(wanted) != total:
        op.refuse(f"turns shape {x.shape} into {tuple(wanted)}, which has another number of values")
    return op.reshape(x, wanted)


def flatten(op: Op) -> Operand:
    """Flatten to two dimensions."""
    x = op[0]
    axis = op.integer("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    if axis == 1 and len(x.shape) > 1:
        return op.call(torch.flatten, x, 1)
    return op.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def squeeze(op: Op) -> Operand:
    """Squeeze: dimensions of size 1 go."""
    x = op[0]
    given = op.ints(1, "axes")
    axes = [axis for axis, size in enumerate(x.shape) if size == 1] if given is None else op.axes(given, len(x.shape))
    if any(x.shape[axis] != 1 for axis in axes):
        op.refuse(f"drops dimensions {axes} of shape {x.shape}, which are not all 1")
    return op.reshape(x, [size for axis, size in enumerate(x.shape) if axis not in axes])


def unsqueeze(op: Op) -> Operand:
    """Unsqueeze: new dimensions of size 1."""
    x, given = op[0], op.ints(1, "axes") or []
    rank = len(x.shape) + len(given)
    axes, sizes = set(op.axes(given, rank)), iter(x.shape)
    return op.reshape(x, [1 if axis in axes else next(sizes) for axis in range(rank)])


def transpose(op: Op) -> Operand:
    """Transpose."""
    rank = len(op[0].shape)
    order = op.int_list("perm") or list(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        op.refuse(f"has the order {order} for {rank} dimensions")
    return op[0] if order == list(range(rank)) else op.call(torch.permute, op[0], order)


def concat(op: Op) -> Operand:
    """Concat."""
    parts = [op[index] for index in range(len(op.inputs))]
    axis = op.axis(op.integer("axis", 0), len(parts[0].shape))
    return parts[0] if len(parts) == 1 else op.call(torch.cat, parts, axis)


def split(op: Op) -> Result:
    """Split, into given sizes or equal parts."""
    x = op[0]
    axis = op.axis(op.integer("axis", 0), len(x.shape))
    size, count = x.shape[axis], op.integer("num_outputs", len(op.node.outputs))
    lengths = op.ints(1, "split")
    if lengths is None and count == len(op.node.outputs):
        part = -(-size // count)  # the last one may be smaller
        lengths = [max(0, min(part, size - part * index)) for index in range(count)]
    if lengths is None or sum(lengths) != size or len(lengths) != len(op.node.outputs) or min(lengths) < 0:
        op.refuse(f"cuts a size of {size} into {lengths}")
    start, parts = 0, []
    for length in lengths:
        parts.append(op.call(torch.narrow, x, axis, start, length))
        start += length
    return tuple(parts)


def slice_(op: Op) -> Operand:
    """Slice, with its bounds as inputs or attributes; a negative step picks one by one."""
    x = op[0]
    starts, ends = op.ints(1, "starts") or [], op.ints(2, "ends") or []
    axes = op.axes(op.ints(3, "axes") or list(range(len(starts))), len(x.shape))
    steps = op.ints(4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        op.refuse("has starts, ends, axes and steps that do not fit each other")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        x = _picked(op, x, axis, places)
    return x


def _picked(op: Op, x: Operand, axis: int, places: range) -> Operand:
    """Places along an axis: all, a part, every so many, or backwards."""
    if places == range(x.shape[axis]):
        return x
    if places.step == 1 or len(places) < 2:
        return op.call(torch.narrow, x, axis, places[0] if places else 0, len(places))
    if places.step > 1:
        return op.call(_cut, x, (*[slice(None)] * axis, slice(places[0], places[-1] + 1, places.step)))
    indices = torch.arange(places.start, places.stop, places.step)
    return op.call(torch.index_select, x, axis, Operand(indices))


def _cut(x: Tensor, places: tuple[slice, ...]) -> Tensor:
    return x[places]


def gather(op: Op) -> Operand:
    """Gather with constant indices."""
    x, axis = op[0], op.axis(op.integer("axis", 0), len(op[0].shape))
    if not op[1].constant:
        op.refuse("has indices that are computed at run time")
    indices, size = op.constant(1), x.shape[axis]
    places = [int(place) for place in indices.reshape(-1).tolist()]
    if any(not -size <= place < size for place in places):
        op.refuse(f"has an index out of a size of {size}")
    places = [place % size for place in places]
    step = places[1] - places[0] if len(places) > 1 else 1
    line = range(places[0], places[-1] + (1 if step > 0 else -1), step) if places and step else range(0)
    if len(line) == len(places) and list(line) == places:
        found = _picked(op, x, axis, line)
    else:
        found = op.call(torch.index_select, x, axis, Operand(torch.tensor(places, dtype=torch.int64)))
    return op.reshape(found, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def shape_of(op: Op) -> Operand:
    """Shape, as a constant: sizes are known when the model is read."""
    sizes = list(op[0].shape)
    end = op.integer("end", len(sizes))
    return Operand(torch.tensor(sizes[slice(op.integer("start", 0), end)], dtype=torch.int64))


def size_of(op: Op) -> Operand:
    """Size, as a constant."""
    return Operand(torch.tensor(op[0].value.numel()))


def expand(op: Op) -> Operand:
    """Expand to a shape with which the input broadcasts."""
    x, wanted = op[0], op.ints(1) or []
    shape = np.broadcast_shapes(x.shape, tuple(wanted))
    return x if shape == x.shape else op.call(Tensor.expand, x, list(shape))


def tile(op: Op) -> Operand:
    """Tile: the input several times along each axis."""
    return op.call(Tensor.repeat, op[0], op.ints(1) or [])


def constant_of_shape(op: Op) -> Operand:
    """ConstantOfShape."""
    attribute = op.node.attributes.get("value")
    fill = torch.zeros(1) if attribute is None else as_tensor(attribute.as_tensor())
    return op.call(torch.full, op.ints(0) or [], fill.item(), dtype=fill.dtype)


def range_of(op: Op) -> Operand:
    """Range of constants."""
    start, limit, step = (op.constant(index).item() for index in range(3))
    return op.call(torch.arange, start, limit, step, dtype=op[0].value.dtype)


def constant(op: Op) -> Operand:
    """Constant, in each of its spellings."""
    attributes = op.node.attributes
    if "value" in attributes:
        return Operand(as_tensor(attributes["value"].as_tensor()))
    kinds = {"float": torch.float32, "floats": torch.float32, "int": torch.int64, "ints": torch.int64}
    found = [kind for kind in kinds if f"value_{kind}" in attributes]
    if not found:
        op.refuse("holds neither a tensor nor numbers")
    return Operand(torch.tensor(attributes[f"value_{found[0]}"].value, dtype=kinds[found[0]]))


def as_tensor(tensor: ir.TensorProtocol) -> Tensor:
    """A tensor of a file; floats of any width as float32."""
    array = tensor.numpy()
    if array.dtype.kind in "fV" or array.dtype.name == "bfloat16":
        array = array.astype("float32")
    return torch.from_numpy(array.copy())


def pad(op: Op) -> Operand:
    """Pad with a constant, the edge, or a reflection; negative pads crop."""
    x, mode = op[0], op.text("mode", "constant")
    pads = op.ints(1, "pads") or []
    given = op.ints(3)
    axes = list(range(len(x.shape))) if given is None else op.axes(given, len(x.shape))
    if len(pads) != 2 * len(axes):
        op.refuse(f"has {len(pads)} pads for {len(axes)} dimensions")
    pairs = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    while pairs and pairs.get(min(pairs)) == (0, 0):
        del pairs[min(pairs)]
    if not pairs:
        return x
    flat = [value for axis in range(len(x.shape) - 1, min(pairs) - 1, -1) for value in pairs.get(axis, (0, 0))]
    if mode == "constant":
        return op.call(F.pad, x, flat, value=op.number(2, "value", 0.0))
    modes = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    if mode not in modes or min(flat) < 0 or min(pairs) < 2 or len(x.shape) not in (3, 4):
        op.refuse(f"has mode '{mode}' for dimensions {sorted(pairs)}")
    full: list[Any] = flat + [0] * (2 * (len(x.shape) - 2) - len(flat))
    return op.call(F.pad, x, full, mode=modes[mode])


def depth_to_space(op: Op) -> Operand:
    """DepthToSpace in both orders."""
    x, block = op[0], op.integer("blocksize", 1)
    if op.text("mode", "DCR") == "CRD":
        return op.call(F.pixel_shuffle, x, block)
    batch, channels, height, width = x.shape
    y = op.reshape(x, (batch, block, block, channels // block**2, height, width))
    y = op.call(torch.permute, y, [0, 3, 4, 1, 5, 2])
    return op.reshape(y, (batch, channels // block**2, height * block, width * block))


def space_to_depth(op: Op) -> Operand:
    """SpaceToDepth."""
    x, block = op[0], op.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    y = op.reshape(x, (batch, channels, height // block, block, width // block, block))
    y = op.call(torch.permute, y, [0, 3, 5, 1, 2, 4])
    return op.reshape(y, (batch, channels * block**2, height // block, width // block))
