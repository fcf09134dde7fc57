"""What each op does to the channel order; see `edgefold.export.lower.carry`.

An op is added here with one function and one line of `RULES`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import Node

from edgefold.export.lower.carry import Cut, Flow, Reading, Rule, Value, Writing
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.nodes import are_constants, ints_of, places_of, shape_of
from edgefold.export.lower.spaces import Indices, Layout, concatenated
from edgefold.quantize.graph import constant_of

aten = torch.ops.aten


def pointwise(flow: Flow, node: Node) -> Value:
    """Element by element, with broadcasting: the operands must agree, constants follow."""
    shape = shape_of(node)
    if shape is None or torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]  # an OpOverload
        return flow.opaque(node)
    wide: list[tuple[Node, Layout]] = []
    axis: int | None = None
    for operand in node.all_input_nodes:
        layout, size = flow.layout(operand), shape_of(operand) or ()
        if layout is None or layout.size == 1:
            continue
        place = layout.axis + len(shape) - len(size)
        if axis is None:
            axis = place
        if place != axis:  # the channels of the one are the space of the other
            return flow.opaque(node)
        wide.append((operand, layout.moved(axis)))
    if axis is None:
        return None
    for operand in node.all_input_nodes:
        size = shape_of(operand) or ()
        inner = axis - (len(shape) - len(size))
        if inner < 0 or size[inner] == 1 or any(operand is known for known, _ in wide):
            continue
        if operand in node.kwargs.values():
            return flow.opaque(node)
        if operand.op == "get_attr":
            for place in places_of(node, operand):
                flow.absorb(node, place, inner, Writing(node))
        else:  # its order was of no account so far
            natural = Layout.natural(shape[axis], inner)
            flow.values[operand] = natural
            wide.insert(0, (operand, natural.moved(axis)))
    return flow.agree(node, [operand for operand, _ in wide], [layout for _, layout in wide])


def prelu(flow: Flow, node: Node) -> Value:
    """One slope a channel."""
    source = node.args[0]
    if (shape_of(node.args[1]) or (1,))[-1] > 1:
        if not are_constants(node, 1):
            return flow.opaque(node)
        flow.absorb(node, 1, 0, Writing(node))
    return flow.layout(source)


def carried(flow: Flow, node: Node) -> Value:
    """Per channel and without parameters, at any place of the channel axis."""
    return flow.layout(node.args[0])


def spatial(flow: Flow, node: Node) -> Value:
    """Acts on the last two dimensions (pooling, resizing)."""
    return _outside(flow, node, 2)


def lines(flow: Flow, node: Node) -> Value:
    """Acts on the last dimension."""
    return _outside(flow, node, 1)


def padding(flow: Flow, node: Node) -> Value:
    """Pads as many of the last dimensions as it has pairs of sizes for."""
    return _outside(flow, node, len(ints_of(node.args[1])) // 2)


def _outside(flow: Flow, node: Node, touched: int) -> Value:
    """Per channel if the op touches only dimensions behind the channels."""
    layout, shape = flow.layout(node.args[0]), shape_of(node.args[0])
    if layout is None or shape is None or layout.axis >= len(shape) - touched:
        return flow.opaque(node)
    if isinstance(node.meta.get("val"), list | tuple):  # pooling with indices, which are positions in space
        return [layout] * len(node.meta["val"])
    return layout


def convolution(flow: Flow, node: Node) -> Value:
    """Takes any order in and writes any order; a depthwise one passes the order of its input on."""
    conv = Conv.of(node)
    if conv is None:
        return flow.opaque(node)
    layout = flow.layout(conv.source)
    if layout is not None and layout.axis != 1:  # it follows another axis than the channels
        flow.demand_natural(node, conv.source)
        layout = None
    writing = Writing(node)
    flow.absorb(node, 2, 0, writing)
    if conv.groups == 1:
        flow.absorb(node, 1, 0, writing)
        flow.absorb(node, 1, 1, Reading(node, conv.source))
    elif conv.groups == conv.in_channels:
        if layout is None:
            return flow.source(node)
        flow.absorb(node, 1, 0, writing)
        return layout.repeated(layout.repeat * (conv.out_channels // conv.in_channels))
    return Layout.free(conv.out_channels)  # which groups go where is a wish like any other; see `permute`


def transposed(flow: Flow, node: Node) -> Value:
    """A transposed convolution, weight (in, out / groups, ...)."""
    source = node.args[0]
    layout = flow.layout(source)
    groups = node.args[6] if len(node.args) > 6 else 1
    if not are_constants(node, 1, 2) or groups != 1 or layout is None or layout.axis != 1 or not isinstance(source, Node):
        return flow.opaque(node)
    flow.absorb(node, 1, 0, Reading(node, source))
    flow.absorb(node, 1, 1, Writing(node))
    flow.absorb(node, 2, 0, Writing(node))
    return Layout.free((shape_of(node) or (0, 0))[1])


def linear(flow: Flow, node: Node) -> Value:
    """Takes any order of its features in and writes any; channels in front of the features pass through."""
    source = node.args[0]
    layout, shape = flow.layout(source), shape_of(node)
    if not isinstance(source, Node) or not are_constants(node, 1, 2) or shape is None:
        return flow.opaque(node)
    last = len(shape) - 1
    if layout is not None and layout.axis != last:
        return layout
    if layout is not None:
        flow.absorb(node, 1, 1, Reading(node, source))
    flow.absorb(node, 1, 0, Writing(node))
    flow.absorb(node, 2, 0, Writing(node))
    return Layout.free(shape[last], last)


def batch_norm(flow: Flow, node: Node) -> Value:
    """Four parameters a channel."""
    source = node.args[0]
    layout = flow.layout(source)
    if layout is None or layout.axis != 1 or not isinstance(source, Node) or not are_constants(node, 1, 2, 3, 4):
        return flow.opaque(node)
    for argument in range(1, 5):
        flow.absorb(node, argument, 0, Reading(node, source))
    value = node.meta.get("val")
    return [layout, *[None] * (len(value) - 1)] if isinstance(value, list | tuple) else layout


def layer_norm(flow: Flow, node: Node) -> Value:
    """Normalises over the last dimensions; its parameters have their shape."""
    source = node.args[0]
    layout, shape = flow.layout(source), shape_of(source)
    if layout is None or shape is None or not isinstance(source, Node) or not are_constants(node, 2, 3):
        return flow.opaque(node)
    first = len(shape) - len(ints_of(node.args[1]))
    if layout.axis >= first:
        for argument in (2, 3):
            flow.absorb(node, argument, layout.axis - first, Reading(node, source))
    value = node.meta.get("val")
    return [layout, *[None] * (len(value) - 1)] if isinstance(value, list | tuple) else layout


def group_norm(flow: Flow, node: Node) -> Value:
    """One group for all channels is indifferent to their order; more are a barrier."""
    source = node.args[0]
    layout = flow.layout(source)
    if layout is None or node.args[1] != 1 or not isinstance(source, Node) or not are_constants(node, 2, 3):
        return flow.opaque(node)
    for argument in (2, 3):
        flow.absorb(node, argument, 0, Reading(node, source))
    return layout


def reduction(flow: Flow, node: Node) -> Value:
    """Over space the channels stay; over the channels the order does not matter."""
    layout, shape = flow.layout(node.args[0]), shape_of(node.args[0])
    if layout is None or shape is None:
        return flow.opaque(node)
    dims = ints_of(node.args[1]) if len(node.args) > 1 and node.args[1] is not None else list(range(len(shape)))
    dims = sorted(dim % len(shape) for dim in dims or range(len(shape)))
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    if layout.axis in dims:
        return None
    return layout if keep else layout.moved(layout.axis - sum(dim < layout.axis for dim in dims))


def concatenation(flow: Flow, node: Node) -> Value:
    """Along the channels: one operand after the other. Along another dimension: the operands must agree."""
    operands = _nodes(node.args[0])
    shape = shape_of(node) or ()
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape)  # type: ignore[operator]  # aten: an int
    layouts: list[Layout] = []
    for operand in operands:
        layout = flow.layout(operand)
        if layout is None or layout.axis != 1:
            return flow.opaque(node)
        layouts.append(layout)
    if dim != 1:
        return flow.agree(node, operands, layouts)
    if len({layout.repeat for layout in layouts}) > 1:  # entries take the place of channels
        for operand in operands:
            flow.demand_natural(node, operand)
        layouts = [Layout.natural(layout.size) for layout in layouts]
    return concatenated(layouts)


def split(flow: Flow, node: Node) -> Value:
    """Contiguous pieces along one dimension."""
    source = node.args[0]
    layout, shape = flow.layout(source), shape_of(source)
    if layout is None or shape is None or not isinstance(source, Node):
        return flow.opaque(node)
    pieces = node.meta["val"]
    dim = (node.args[2] if len(node.args) > 2 else 0) % len(shape)  # type: ignore[operator]  # aten: an int
    if dim != layout.axis:
        return [layout] * len(pieces)
    bounds = [0, *itertools.accumulate(int(piece.shape[dim]) for piece in pieces)]
    return list(_pieces(flow, node, source, layout, bounds))


def slicing(flow: Flow, node: Node) -> Value:
    """One piece along one dimension, contiguous or strided."""
    source = node.args[0]
    layout, shape = flow.layout(source), shape_of(source)
    if layout is None or shape is None or not isinstance(source, Node):
        return flow.opaque(node)
    given: list[Any] = [*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :]]
    dim, start, stop, step = given
    dim %= len(shape)
    if dim != layout.axis:
        return layout
    first, last, _ = slice(start, stop).indices(shape[dim])
    if step != 1:
        return _selection(flow, node, source, layout, np.arange(first, max(first, last), step))
    piece = _pieces(flow, node, source, layout, [0, first, max(first, last), shape[dim]])[1]
    if node in flow.selected:
        flow.cuts[node] = Cut(node, source, flow.selected[node][1])
    return piece


def picking(flow: Flow, node: Node) -> Value:
    """Some of the channels, each at most once; an index of all of them is a shuffle (`edgefold.export.lower.shuffle`)."""
    source = node.args[0]
    layout, shape = flow.layout(source), shape_of(source)
    if layout is None or shape is None or not isinstance(source, Node):
        return flow.opaque(node)
    if node.target is aten.index_select.default:
        dim, index = node.args[1:3]
    else:
        indices: Any = node.args[1]
        found = [(place, one) for place, one in enumerate(indices) if one is not None]
        dim, index = found[0] if len(found) == 1 else (None, None)
    if not isinstance(dim, int) or dim % len(shape) != layout.axis or not isinstance(index, Node) or index.op != "get_attr":
        return flow.opaque(node)
    channels = constant_of(flow.module, index)
    if channels.ndim != 1 or channels.dtype not in (torch.int32, torch.int64) or len(set(channels.tolist())) < len(channels):
        return flow.opaque(node)
    return _selection(flow, node, source, layout, channels.numpy() % shape[layout.axis])


def _selection(flow: Flow, node: Node, source: Node, layout: Layout, channels: Indices) -> Value:
    # What is written in natural order anyway would only get a gather in front of the slice.
    held = {one.space for other in flow.written if (found := flow.layout(other)) is not None for one in found.segments()}
    piece = "" if any(one.space in held for one in layout.segments()) else flow.solver.select(layout, channels)
    if isinstance(piece, str):
        return flow.opaque(node)
    flow.cuts[node] = Cut(node, source, channels)
    return piece


def _pieces(flow: Flow, node: Node, source: Node, layout: Layout, bounds: Sequence[int]) -> list[Layout]:
    """Neighbouring parts of the channels: at their very place, else in whatever places they are, else cut from a copy."""
    spans = list(itertools.pairwise(bounds))
    mark = flow.solver.mark()
    pieces = [flow.solver.slice(layout, start, stop) for start, stop in spans]
    if any(isinstance(piece, str) for piece in pieces):
        flow.solver.undo(mark)
        parts = [np.arange(start, stop) for start, stop in spans]
        pieces = [flow.solver.select(layout, part) for part in parts]
        if any(isinstance(piece, str) for piece in pieces):
            flow.solver.undo(mark)
            flow.read[node, source] = layout = Layout.free(layout.size, layout.axis)
            pieces = [flow.solver.slice(layout, start, stop) for start, stop in spans]
        else:
            flow.selected[node] = parts
    return [piece for piece in pieces if isinstance(piece, Layout)]


def item(flow: Flow, node: Node) -> Value:
    """One element of a tuple."""
    source = node.args[0]
    assert isinstance(source, Node)
    value = flow.values.get(source)
    if isinstance(value, list):
        if source in flow.selected:
            producer = source.args[0]
            assert isinstance(producer, Node)
            flow.cuts[node] = Cut(source, producer, flow.selected[source][node.args[1]])  # type: ignore[index]  # an int
        return value[node.args[1]]  # type: ignore[index]  # an int index gives one layout
    return flow.source(node)


def reshape(flow: Flow, node: Node) -> Value:
    """Dimensions behind the channels merge into them or come apart."""
    source = node.args[0]
    layout, before, after = flow.layout(source), shape_of(source), shape_of(node)
    if layout is None or before is None or after is None:
        return flow.opaque(node)
    front = int(np.prod(before[: layout.axis]))
    for axis, size in enumerate(after):
        if int(np.prod(after[:axis])) != front or size == 1 != layout.size:
            continue
        if size % layout.channels == 0:
            return layout.moved(axis).repeated(size // layout.channels)
        break
    return flow.opaque(node)


def transposition(flow: Flow, node: Node) -> Value:
    """Moves the channel axis."""
    layout, shape = flow.layout(node.args[0]), shape_of(node)
    if layout is None or shape is None:
        return flow.opaque(node)
    if node.target is aten.permute.default:
        dims = [dim % len(shape) for dim in ints_of(node.args[1])]
    else:
        dims = list(range(len(shape)))
        one, other = (dim % len(shape) for dim in ints_of(node.args[1:3]))
        dims[one], dims[other] = other, one
    return layout.moved(dims.index(layout.axis))


def expansion(flow: Flow, node: Node) -> Value:
    """Repeats along dimensions of size 1."""
    layout, before, after = flow.layout(node.args[0]), shape_of(node.args[0]), shape_of(node)
    if layout is None or before is None or after is None:
        return flow.opaque(node)
    axis = layout.axis + len(after) - len(before)
    return layout.moved(axis) if after[axis] == layout.size else flow.opaque(node)


def _nodes(value: Any) -> list[Node]:
    return [one for one in value if isinstance(one, Node)]


def _table(*entries: tuple[Rule, str]) -> dict[object, Rule]:
    """The rules by op; ``entries`` name overloads as "op.overload", separated by spaces."""
    table: dict[object, Rule] = {}
    for rule, names in entries:
        for name in names.split():
            packet, overload = name.split(".")
            table[getattr(getattr(aten, packet), overload)] = rule
    return table


RULES: Final[dict[object, Rule]] = {
    operator.getitem: item,
    **_table(
        (carried, "hardswish.default _to_copy.default log_sigmoid.default clone.default contiguous.default dropout.default"),
        (carried, "softmax.int _softmax.default log_softmax.int _log_softmax.default"),
        (prelu, "prelu.default"),
        (convolution, "conv1d.default conv1d.padding conv2d.default conv2d.padding convolution.default"),
        (transposed, "conv_transpose1d.default conv_transpose2d.input"),
        (linear, "linear.default"),
        (batch_norm, "batch_norm.default _native_batch_norm_legit_no_training.default"),
        (layer_norm, "layer_norm.default native_layer_norm.default"),
        (group_norm, "group_norm.default"),
        (spatial, "max_pool2d.default max_pool2d_with_indices.default avg_pool2d.default"),
        (spatial, "adaptive_avg_pool2d.default _adaptive_avg_pool2d.default adaptive_max_pool2d.default"),
        (spatial, "upsample_nearest2d.vec upsample_nearest2d.default upsample_bilinear2d.vec upsample_bilinear2d.default"),
        (spatial, "reflection_pad2d.default replication_pad2d.default"),
        (padding, "constant_pad_nd.default pad.default"),
        (lines, "max_pool1d.default avg_pool1d.default adaptive_avg_pool1d.default adaptive_max_pool1d.default"),
        (reduction, "mean.dim sum.dim_IntList amax.default amin.default mean.default sum.default"),
        (concatenation, "cat.default"),
        (split, "split.Tensor split_with_sizes.default split.sizes chunk.default"),
        (slicing, "slice.Tensor"),
        (picking, "index_select.default index.Tensor"),
        (reshape, "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int"),
        (reshape, "unsqueeze.default squeeze.dim squeeze.dims squeeze.default"),
        (transposition, "permute.default transpose.int"),
        (expansion, "expand.default"),
    ),
}
