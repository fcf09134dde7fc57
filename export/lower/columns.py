"""Convolutions of few channels read and write several columns of the image as channels, for ONNX Runtime.

Its integer kernels lay the image out by taps and multiply vectors or tiles, so that a pixel of few channels takes about as long
as one of many; with columns as channels the image has fewer pixels (`edgefold.export.passes.columns`). How many columns pay
depends on the CPU (`TILES`, `LANES`). Depthwise convolutions of few channels gain as well. The image is read as NHWC by a
permutation, a view and a permutation back; ONNX Runtime computes in NHWC, and drops the permutations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgefold.export.lower.conv import Conv
from edgefold.export.lower.nodes import record_values, shape_of
from edgefold.export.passes.columns import Row
from edgefold.export.passes.infra import clone
from edgefold.export.program import LoweredProgram
from edgefold.quantize.graph import add_buffer, constant_of
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE, Q

aten = torch.ops.aten

FEW: Final = 32  # channels, of which more fill enough of a tile
_VIEWS_NS: Final = 4000.0  # the two views around a convolution, whatever its size


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a pixel of the output of an integer convolution takes, in ns.

    A copy for each tap, which takes longer for each channel and where they are no multiple of 4; the products, whose depth and
    width are rounded up to ``depth`` and ``width``; each output; and the pixel. A depthwise one takes ``depthwise_ns``.
    """

    tap_ns: float
    odd_tap_ns: float
    byte_ns: float
    product_ns: float
    output_ns: float
    pixel_ns: float
    depthwise_ns: float
    depth: int
    width: int


# Fitted to kernels of 3x3 with 3 to 24 channels in and 8 to 128 out, on a Xeon with AMX.
TILES: Final = Kernel(3.2, 0.0, 0.0, 0.0027, 0.3, -5.0, 22.0, depth=64, width=16)
# Fitted to twelve layers of 1 to 24 channels in and 8 to 64 out, with kernels of 3x3 to 7x7, on an EPYC with VNNI and no AMX: in
# none of them did another number of columns that was tried (2, 4, 5, 8, 10) take 1 % less. There is no benchmark of this fit.
LANES: Final = Kernel(0.0, 0.98, 0.036, 0.00166, 0.216, 5.95, 18.0, depth=16, width=32)


@dataclass(frozen=True, slots=True)
class _Site:
    """A convolution that gains: whether a node before it pads, its image (B, C, H, W) without any padding, the rows of padding
    above it, its row, ``q`` outputs for a group, and the node with its quantized output.
    """

    conv: Conv
    padded: bool
    image: tuple[int, ...]
    top: int
    row: Row
    q: int
    output: Node


def columns(lowered: LoweredProgram, kernel: Kernel) -> LoweredProgram:
    """The program with columns as channels where that gains with such a kernel; itself where it does not."""
    graph = clone(lowered.program.graph)
    record_values(graph, lowered.program.example_inputs)
    sites = [site for node in graph.graph.nodes if (site := _site(node, kernel)) is not None]
    if not sites:
        return lowered
    for site in sites:
        _rewrite(graph, site)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    result = GraphModule(graph, graph.graph)
    for node in result.graph.nodes:
        node.meta.pop("val", None)  # of the old shapes
    plan = replace(lowered.plan, columns=True)
    return replace(lowered, program=replace(lowered.program, graph=result), plan=plan)


def _site(node: Node, kernel: Kernel) -> _Site | None:
    conv = Conv.of(node)
    if conv is None or WEIGHT_SCALE not in node.meta or len(conv.kernel) != 2 or conv.dilation != (1, 1):
        return None
    if conv.in_channels > FEW or not (conv.groups == 1 or (conv.depthwise and conv.out_channels == conv.in_channels)):
        return None
    source, (top, left) = conv.source, conv.padding
    edges = _edges(source)
    if edges is not None:
        source = source.all_input_nodes[0]
        left, top = left + edges[0], top + edges[2]
    shape, output = shape_of(source), _output(node)
    if shape is None or output is None or Q not in source.meta or len(shape) != 4:
        return None
    row = Row(conv.in_channels, conv.out_channels, conv.kernel[1], conv.stride[1], left, shape[3])
    if conv.out_space[1] * row.stride != row.width:
        return None
    rows, views = conv.kernel[0], _VIEWS_NS / (shape[0] * conv.out_space[0])
    now = kernel.depthwise_ns * row.width / row.stride if conv.depthwise else _cost(kernel, row, rows)
    q = row.best(lambda row: _cost(kernel, row, rows) + views, now)
    return None if q is None else _Site(conv, edges is not None, shape, top, row, q, output)


def _edges(node: Node) -> list[int] | None:
    """The (left, right, top, bottom) zeros that a node adds for one reader; ``None`` for any other node."""
    if node.target not in (aten.constant_pad_nd.default, aten.pad.default) or len(node.users) > 1:
        return None
    edges: Any = node.args[1]
    zeros = all(one in ("constant", 0, None) for one in (*node.args[2:], *node.kwargs.values()))
    return list(edges) if zeros and len(edges) == 4 and min(edges) >= 0 else None


def _output(node: Node) -> Node | None:
    """The node with the quantized output of a layer."""
    if Q in node.meta:
        return node
    (user, *others) = node.users
    return user if not others and Q in user.meta and user.args[0] is node and len(user.all_input_nodes) == 1 else None


def _cost(kernel: Kernel, row: Row, rows: int) -> float:
    """Nanoseconds for one row of the image, with ``rows`` rows of taps."""
    taps = rows * row.kernel
    depth = -(-taps * row.channels // kernel.depth) * kernel.depth
    width = -(-row.outputs // kernel.width) * kernel.width
    tap = kernel.tap_ns + kernel.byte_ns * row.channels + (kernel.odd_tap_ns if row.channels % 4 else 0.0)
    pixel = tap * taps + kernel.product_ns * depth * width + kernel.output_ns * row.outputs + kernel.pixel_ns
    return row.width / row.stride * pixel


def _rewrite(module: GraphModule, site: _Site) -> None:
    conv, row, graph = site.conv.current(), site.row, module.graph
    source = conv.source.all_input_nodes[0] if site.padded else conv.source
    batch, _, height, _ = site.image
    rows, wide = conv.out_space[0], row.grouped(site.q)
    bottom = max(0, (rows - 1) * conv.stride[0] + conv.kernel[0] - height - site.top)
    right = max(0, row.taps(site.q)[-1])
    with graph.inserting_before(conv.node):
        image = _viewed(graph, source, (batch, height, wide.width, wide.channels))
        padding = [site.top, wide.left]
        if (site.top, wide.left) != (bottom, right):
            image = graph.call_function(aten.constant_pad_nd.default, (image, [wide.left, right, site.top, bottom], 0.0))
            image.meta = _moved(source)
            padding = [0, 0]
        weight = add_buffer(module, f"{conv.node.name}_columns_weight", _weight(module, site))
        bias = None
        if conv.bias is not None:
            bias = add_buffer(module, f"{conv.node.name}_columns_bias", constant_of(module, conv.bias).repeat(site.q))
        made = graph.call_function(aten.conv2d.default, (image, weight, bias, [conv.stride[0], 1], padding))
    made.meta = {key: value for key, value in conv.node.meta.items() if key not in ("val", BRANCH_Q)}
    made.meta[WEIGHT_SCALE] = conv.node.meta[WEIGHT_SCALE].repeat(site.q)
    conv.node.replace_all_uses_with(made)
    output = made if site.output is conv.node else site.output
    readers = list(output.users)
    with graph.inserting_before(output.next):
        result = _viewed(graph, output, (batch, rows, wide.width * site.q, row.outputs))
    for reader in readers:
        reader.replace_input_with(output, result)


def _viewed(graph: Graph, source: Node, shape: tuple[int, ...]) -> Node:
    """The image (B, C, H, W), in the order of NHWC, as one of ``shape`` (B, H, W', C'); given as (B, C', H, W')."""
    last = graph.call_function(aten.permute.default, (source, [0, 2, 3, 1]))
    view = graph.call_function(aten.reshape.default, (last, list(shape)))
    first = graph.call_function(aten.permute.default, (view, [0, 3, 1, 2]))
    for node in (last, view, first):
        node.meta = _moved(source)
    return first


def _moved(like: Node) -> dict[str, Any]:
    """The ``meta`` of a node whose values are those of ``like`` in other places."""
    return {key: value for key, value in like.meta.items() if key in (Q, "nn_module_stack", "stack_trace")}


def _weight(module: GraphModule, site: _Site) -> Tensor:
    """The weight (q·N, g·C, kh, taps) of the groups."""
    value = constant_of(module, site.conv.current().weight)
    if site.conv.depthwise:
        value = torch.eye(len(value), dtype=value.dtype).reshape(*[len(value)] * 2, 1, 1) * value
    wide = site.row.weight(value.permute(0, 2, 3, 1).numpy(), site.q)
    return torch.from_numpy(np.ascontiguousarray(wide.transpose(0, 3, 1, 2)))
