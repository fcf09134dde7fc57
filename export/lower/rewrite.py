"""Writes a chosen lowering into the graph, after the channel groups have been made contiguous.

A layer W with groups in stored order becomes

    grouped:  conv(x, G, bias, groups) [+ conv1x1(x, R)]
    split:    cat(conv(x[slice 1], G1, bias1), …) [+ conv1x1(x, R)]

The bias goes with the groups. Quantization parameters go along: the add (or the only branch) gets those of the layer,
the branches those calibrated for them, and both convolutions the layer's weight scales, so integer weights are those
of the dense layer. A clamp (ReLU, ReLU6) that the layer is fused with and that would stand behind a concat moves in
front of it, onto each piece, where the integer kernels fuse it again. Groups of unequal sizes are padded: a gather repeats
a channel for each one that is missing, whose weights are zero, and a second gather picks the real outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.lower.candidates import Option, options_of
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.nodes import is_float
from edgefold.export.lower.point import PointPlacement
from edgefold.export.lower.spaces import Indices
from edgefold.export.plan import Lowering
from edgefold.quantize.graph import add_buffer, constant_of, module_path
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE, Q

aten = torch.ops.aten

CLAMPS: Final = frozenset(
    {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default}
)


def free_groups(module: GraphModule, wanted: Callable[[str], bool]) -> bool:
    """Writes group convolutions (not depthwise ones) at whose module paths ``wanted`` holds as dense ones; true if any are.

    The new nodes have no value in their ``meta`` yet.
    """
    convs = [conv for conv in map(Conv.of, module.graph.nodes) if conv is not None and conv.groups > 1 and not conv.depthwise]
    chosen = [conv for conv in convs if wanted(module_path(conv.node))]
    for conv in chosen:
        option = Option(Lowering.DENSE, options_of(conv, constant_of(module, conv.weight)).options[0].geometry)
        Rewriter(module, conv, option, np.arange(conv.in_channels), np.arange(conv.out_channels)).run()
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return bool(chosen)


class Rewriter:
    """Builds the nodes of one lowered layer in place of its convolution."""

    def __init__(self, module: GraphModule, conv: Conv, option: Option, reads: Indices, writes: Indices) -> None:
        """``reads`` and ``writes`` are the orders in which the layer's channels are stored now."""
        self._module, self._graph = module, module.graph
        self._conv, self._option = conv, option
        weight = constant_of(module, conv.weight)
        self._bias = constant_of(module, conv.bias) if conv.bias is not None else None
        self._scale: Tensor | None = conv.node.meta.get(WEIGHT_SCALE)
        # The groups in the numbers of the stored channels, by their place in the output: contiguous runs.
        place_of = _inverse(reads), _inverse(writes)
        self._places = [(place_of[0][ins], place_of[1][outs]) for ins, outs in option.partition]
        stored = [] if option.padded else [(_run(ins), _run(outs)) for ins, outs in self._places]
        self._groups: list[tuple[slice, slice]] = sorted(stored, key=lambda group: group[1].start)
        self._gathers = 0
        self._weight = weight if conv.groups == 1 else _expanded(weight, conv.groups)

    def run(self) -> int:
        """Replaces the convolution, and returns the number of gathers that it needed."""
        conv, option = self._conv, self._option
        if option.lowering is Lowering.DENSE:
            dense = self._convolve(conv.source, self._weight, self._bias, conv, 1)
            dense.meta.update(_only(conv.node, Q))
            conv.node.replace_all_uses_with(dense)
            return 0
        moves = option.lowering is Lowering.SPLIT or option.padded
        activation = fused_clamp(conv.node) if moves and option.point is None else None
        if option.padded:
            main = self._padded(activation)
        else:
            main = self._group() if option.lowering is Lowering.GROUPED else self._split(activation)
        if option.point is None:
            if activation is None:
                main.meta.update(_only(conv.node, Q))
            (activation or conv.node).replace_all_uses_with(main)
            return self._gathers
        point = self._point(option.point)
        main.meta.update(_branch(conv.node, "group"))
        point.meta.update(_branch(conv.node, "point"))
        total = self._call(aten.add.Tensor, (main, point))
        total.meta.update(_only(conv.node, Q))
        conv.node.replace_all_uses_with(total)
        return self._gathers

    def _padded(self, activation: Node | None) -> Node:
        """The group convolution of unequal groups, each as wide as the widest."""
        conv, (width, height) = self._conv, self._option.geometry.widest_group
        count = len(self._places)
        weight = self._weight.new_zeros(count * height, width, *self._weight.shape[2:])
        bias = None if self._bias is None else self._bias.new_zeros(count * height)
        scale = None if self._scale is None else torch.ones(count * height)
        reads, writes = np.zeros((count, width), np.int64), np.zeros(conv.out_channels, np.int64)
        for group, (ins, outs) in enumerate(self._places):
            reads[group] = ins[0]
            reads[group, : len(ins)] = ins
            rows = slice(group * height, group * height + len(outs))
            writes[outs] = np.arange(rows.start, rows.stop)
            weight[rows, : len(ins)] = self._weight[torch.from_numpy(outs)][:, torch.from_numpy(ins)]
            if bias is not None and self._bias is not None:
                bias[rows] = self._bias[torch.from_numpy(outs)]
            if scale is not None and self._scale is not None:
                scale[rows] = self._scale[torch.from_numpy(outs)]
        source = self._gather(conv.source, reads.ravel(), _only(conv.source, Q))
        result = self._convolve(source, weight, bias, conv, count)
        if scale is not None:
            result.meta[WEIGHT_SCALE] = scale
        quantized = _branch(conv.node, "group") if self._option.point is not None else _only(conv.node, Q)
        result.meta.update(quantized)
        if activation is not None:
            result = self._call(activation.target, (result, *activation.args[1:]), activation.kwargs)
            quantized = _only(activation, Q)
            result.meta.update(quantized)
        return self._gather(result, writes, quantized)

    def _gather(self, source: Node, order: Indices, quantized: dict[str, Any]) -> Node:
        self._gathers += 1
        with self._graph.inserting_before(self._conv.node):
            index = add_buffer(self._module, f"{self._conv.node.name}_places", torch.from_numpy(order))
        node = self._call(aten.index_select.default, (source, 1, index))
        node.meta.update(quantized)
        return node

    def _group(self) -> Node:
        conv = self._conv
        blocks = torch.cat([self._weight[outs, ins] for ins, outs in self._groups])
        return self._convolve(conv.source, blocks, self._bias, conv, len(self._groups))

    def _split(self, activation: Node | None) -> Node:
        conv, pieces = self._conv, []
        quantized = _branch(conv.node, "group") if self._option.point is not None else _only(conv.node, Q)
        for ins, outs in self._groups:
            part = self._call(aten.slice.Tensor, (conv.source, 1, ins.start, ins.stop))
            part.meta.update(_only(conv.source, Q))
            bias = self._bias[outs] if self._bias is not None else None
            piece = self._convolve(part, self._weight[outs, ins], bias, conv, 1, rows=outs)
            piece.meta.update(quantized)
            if activation is not None:
                piece = self._call(activation.target, (piece, *activation.args[1:]), activation.kwargs)
                piece.meta.update(_only(activation, Q))
            pieces.append(piece)
        joined = self._call(aten.cat.default, (pieces, 1))
        joined.meta.update(_only(activation, Q) if activation is not None else quantized)
        return joined

    def _point(self, placement: PointPlacement) -> Node:
        conv = self._conv
        source = conv.source
        for dim, crop in enumerate(placement.crop):
            if crop:
                source = self._call(aten.slice.Tensor, (source, dim + 2, crop, conv.in_space[dim]))
                source.meta.update(_only(conv.source, Q))
        rest = self._weight.clone()
        for ins, outs in self._places:
            rest[torch.from_numpy(outs)[:, None], torch.from_numpy(ins)[None]] = 0
        weight = rest[(slice(None), slice(None), *(slice(tap, tap + 1) for tap in placement.tap))]
        one = (1,) * len(conv.kernel)
        result = self._conv_node(source, weight, None, conv.stride, placement.padding, one, 1)
        for dim, keep in enumerate(placement.keep):
            if keep is not None:
                quantized = _branch(conv.node, "point")
                result.meta.update(quantized)
                result = self._call(aten.slice.Tensor, (result, dim + 2, 0, keep))
        return result

    def _convolve(
        self, source: Node, weight: Tensor, bias: Tensor | None, like: Conv, groups: int, rows: slice = slice(None)
    ) -> Node:
        return self._conv_node(source, weight, bias, like.stride, like.padding, like.dilation, groups, rows)

    def _conv_node(
        self,
        source: Node,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        rows: slice = slice(None),
    ) -> Node:
        name = str(self._conv.weight.target).replace(".", "_")
        with self._graph.inserting_before(self._conv.node):
            weight_node = add_buffer(self._module, f"{name}_lowered", weight)
            bias_node = None if bias is None else add_buffer(self._module, f"{name}_lowered_bias", bias)
        target = aten.conv1d.default if len(stride) == 1 else aten.conv2d.default
        arguments = (source, weight_node, bias_node, [*stride], [*padding], [*dilation], groups)
        node = self._call(target, arguments)
        if self._scale is not None:
            node.meta[WEIGHT_SCALE] = self._scale[rows]
        return node

    def _call(self, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Node:
        with self._graph.inserting_before(self._conv.node):
            node = self._graph.call_function(target, arguments, keywords)
        node.meta = _only(self._conv.node, "nn_module_stack", "stack_trace")
        return node


def fused_clamp(node: Node) -> Node | None:
    """The clamp after a convolution, if it is the only user of its output."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in CLAMPS and is_float(users[0]) and Q not in node.meta:
        return users[0]
    return None


def _only(node: Node, *keys: str) -> dict[str, Any]:
    return {key: node.meta[key] for key in keys if key in node.meta}


def _branch(node: Node, name: str) -> dict[str, Any]:
    branches = node.meta.get(BRANCH_Q)
    return {} if branches is None else {Q: branches[name]}


def _inverse(order: Indices) -> Indices:
    inverse = order.copy()
    inverse[order] = range(len(order))
    return inverse


def _run(places: Indices) -> slice:
    """The contiguous run that channels occupy."""
    first, last = int(places.min()), int(places.max()) + 1
    assert last - first == len(places), "a group is not stored together"
    return slice(first, last)


def _expanded(weight: Tensor, groups: int) -> Tensor:
    """The dense weight (N, M, ...) of a group convolution (N, M / groups, ...)."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], columns * groups, *weight.shape[2:])
    for group in range(groups):
        inside = slice(group * rows, (group + 1) * rows)
        dense[inside, group * columns : (group + 1) * columns] = weight[inside]
    return dense
