"""Average pooling that leaves numbers out of the mean, in forms that TFLite has an operator for.

These are the padding, where it is not counted, and with ``ceil_mode`` what a last window covers beyond it. TFLite's
AVERAGE_POOL_2D leaves such numbers out too, but pads in its own way, SAME: with the same number on both sides only at some sizes
and strides. What the converter cannot express so, it writes as a reduction with subgraphs of its own; a stride of 2 so too where
it is SAME. It knows ``ceil_mode`` where that is SAME and without padding, as in ResNet-D.

    odd kernel     stride 1 with padding (K−1)/2, which is SAME at any size; then every s-th row and column is kept.
                   Nothing is rounded anew, so that it stays in integers
    otherwise      (even kernels, counted padding with ``ceil_mode``, windows whose middle is beyond the image, in float all
                   that reach over the end) in float all is counted, and each place is multiplied by K² over the number
                   that shall be. In integers that would multiply the rounding, too: there, windows of one size are
                   pooled together, a strip of the image each
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer
from edgefold.quantize.scheme import Q

_AVERAGE: Final = torch.ops.aten.avg_pool2d.default
_PAD: Final = torch.ops.aten.constant_pad_nd.default
_SLICE: Final = torch.ops.aten.slice.Tensor
_JOIN: Final = torch.ops.aten.cat.default
_MANY_STRIPS: Final = 25
_MULTIPLY: Final = torch.ops.aten.mul.Tensor


@dataclass(frozen=True, slots=True)
class _Strip:
    """Windows of ``side`` numbers, ``step`` apart, in the places from ``first`` to before ``end``."""

    first: int
    end: int
    side: int
    step: int


@dataclass(frozen=True, slots=True)
class _Pool:
    """One pooling, as (height, width); ``beyond`` is how far the last windows reach over the padding."""

    source: Node
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    counted: bool
    size: tuple[int, int]
    result: tuple[int, int]
    beyond: tuple[int, int]

    @property
    def plain(self) -> bool:
        """Whether the converter has an operator for it without ``ceil_mode``: all is counted, or it is SAME with stride 1."""
        same = self.stride == (1, 1) and all(side - 1 == 2 * pad for side, pad in zip(self.kernel, self.padding, strict=True))
        return not any(self.beyond) and (self.counted or same)

    @property
    def same(self) -> bool:
        """Whether it is SAME with no number before the image, which the converter reads from ``ceil_mode``."""
        dimensions = zip(self.result, self.stride, self.kernel, self.size, strict=True)
        return not any(self.padding) and all(
            count == -(-size // step) and (count - 1) * step + side - size <= 1 for count, step, side, size in dimensions
        )

    @property
    def kept(self) -> bool:
        """Whether it is a part of the pooling with stride 1 that is SAME."""
        last = (
            (count - 1) * step + side // 2 - pad
            for count, step, side, pad in zip(self.result, self.stride, self.kernel, self.padding, strict=True)
        )
        inside = all(place < size for place, size in zip(last, self.size, strict=True))
        return all(side % 2 for side in self.kernel) and inside and not (self.counted and any(self.padding))

    def strips(self, axis: int) -> list[_Strip]:
        """The windows without what they leave out, those of one size that follow each other together."""
        around = self.padding[axis] if self.counted else 0
        size = self.size[axis] + 2 * around
        found: list[_Strip] = []
        for place in range(self.result[axis]):
            start = place * self.stride[axis] - self.padding[axis] + around
            first, end = max(0, start), min(size, start + self.kernel[axis])
            if found and found[-1].side == end - first and found[-1].end == end - self.stride[axis]:
                found[-1] = replace(found[-1], end=end)
            else:
                found.append(_Strip(first, end, end - first, self.stride[axis]))
        return found


def pool_windows(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every such pooling of (N, C, H, W); needs ``meta["val"]``."""
    graph = clone(graph)
    found = [(node, pool) for node in graph.graph.nodes if (pool := _pool(node)) is not None]
    for node, pool in found:
        if pool.plain:
            node.args = (pool.source, list(pool.kernel), list(pool.stride), list(pool.padding), False, pool.counted)
        elif pool.same:
            node.args = (pool.source, list(pool.kernel), list(pool.stride), [0, 0], True, False)
        elif pool.kept and (Q in node.meta or not any(pool.beyond)):  # in float a product is faster, where the converter has one
            _keep_some(graph, node, pool)
        elif Q in node.meta and len(rows := pool.strips(0)) * len(columns := pool.strips(1)) <= _MANY_STRIPS:
            _in_strips(graph, node, pool, rows, columns)
        else:
            _rescale(graph, node, pool)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _keep_some(graph: GraphModule, node: Node, pool: _Pool) -> None:
    middle = [side // 2 for side in pool.kernel]
    with graph.graph.inserting_before(node):
        value = _call(graph, node, _AVERAGE, pool.source, list(pool.kernel), [1, 1], middle, False, False)
        for axis in (0, 1):
            first, step = middle[axis] - pool.padding[axis], pool.stride[axis]
            last = first + (pool.result[axis] - 1) * step + 1
            if (first, step, last) != (0, 1, pool.size[axis]):
                value = _call(graph, node, _SLICE, value, 2 + axis, first, last, step)
    _replace(graph, node, value)


def _in_strips(graph: GraphModule, node: Node, pool: _Pool, rows: list[_Strip], columns: list[_Strip]) -> None:
    with graph.graph.inserting_before(node):
        source = pool.source
        if pool.counted and any(pool.padding):
            (top, left) = pool.padding
            source = _call(graph, node, _PAD, source, [left, left, top, top], 0.0)
        made = []
        for row in rows:
            across = _slice(graph, node, source, 2, row)
            parts = [
                _call(
                    graph,
                    node,
                    _AVERAGE,
                    _slice(graph, node, across, 3, column),
                    [row.side, column.side],
                    [row.step, column.step],
                    [0, 0],
                    False,
                    True,
                )
                for column in columns
            ]
            made.append(_join(graph, node, parts, 3))
        value = _join(graph, node, made, 2)
    _replace(graph, node, value)


def _slice(graph: GraphModule, node: Node, source: Node, axis: int, strip: _Strip) -> Node:
    if (strip.first, strip.end) == (0, _value(graph, source).shape[axis]):
        return source
    return _call(graph, node, _SLICE, source, axis, strip.first, strip.end)


def _join(graph: GraphModule, node: Node, parts: list[Node], axis: int) -> Node:
    return parts[0] if len(parts) == 1 else _call(graph, node, _JOIN, parts, axis)


def _rescale(graph: GraphModule, node: Node, pool: _Pool) -> None:
    (top, left), (below, right) = pool.padding, pool.beyond
    around = [left, left + right, top, top + below]
    ones = torch.ones(1, 1, *pool.size, dtype=torch.float64)
    wanted = F.avg_pool2d(ones, pool.kernel, pool.stride, pool.padding, any(pool.beyond), pool.counted)
    factor = wanted / F.avg_pool2d(F.pad(ones, around), pool.kernel, pool.stride)
    with graph.graph.inserting_before(node):
        value, padding = pool.source, list(pool.padding)
        if any(pool.beyond):
            value, padding = _call(graph, node, _PAD, value, around, 0.0), [0, 0]
            value.meta.pop(Q, None)  # the grid is that of the result
        mean = _call(graph, node, _AVERAGE, value, list(pool.kernel), list(pool.stride), padding, False, True)
        mean.meta.pop(Q, None)
        value = _call(graph, node, _MULTIPLY, mean, add_buffer(graph, f"{node.name}_share", factor.float()))
    _replace(graph, node, value)


def _call(graph: GraphModule, origin: Node, target: Any, *args: Any) -> Node:
    """A new node that comes from the same layer, and lies on the same integer grid, as ``origin``."""
    made = graph.graph.call_function(target, args)
    made.meta = dict(origin.meta)
    values = pytree.tree_map_only(Node, lambda arg: _value(graph, arg), args)
    made.meta["val"] = target(*values)
    return made


def _value(graph: GraphModule, node: Node) -> Tensor:
    """A tensor with the shape of a node's value."""
    value = node.meta.get("val")
    result: Tensor = getattr(graph, str(node.target)) if value is None else value
    return torch.empty(result.shape, dtype=result.dtype, device="meta")


def _replace(graph: GraphModule, node: Node, value: Node) -> None:
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)


def _pool(node: Node) -> _Pool | None:
    """A pooling that the converter has no operator for; ``None`` for any other node."""
    source = node.args[0] if node.target is _AVERAGE and not node.kwargs else None
    if not isinstance(source, Node):
        return None
    sides, steps, pads, ceil, counted, divisor = average_options(node)
    shape, made = source.meta["val"].shape, node.meta["val"].shape
    if divisor is not None or len(shape) != 4:
        return None
    size, result = (int(shape[2]), int(shape[3])), (int(made[2]), int(made[3]))
    places = zip(result, steps, sides, size, pads, strict=True)
    height, width = (max(0, (count - 1) * step + side - space - 2 * pad) for count, step, side, space, pad in places)
    pool = _Pool(source, sides, steps, pads, counted or not any(pads), size, result, (height, width))
    as_it_is = not ceil if pool.plain else pool.same and not counted
    return None if as_it_is else pool


def average_options(node: Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool, bool, int | None]:
    """Kernel, stride and padding as (height, width), ceil_mode, count_include_pad and divisor_override of an ``avg_pool2d``."""
    given: list[Any] = list(node.args[1:])
    defaults = [None, None, (0, 0), False, True, None]
    kernel, stride, padding, ceil, counted, divisor = given + defaults[len(given) :]
    sides = _pair(kernel)
    return sides, _pair(stride) if stride else sides, _pair(padding), ceil, counted, divisor


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _pool(node) is not None]
    return f"average pooling '{names[0]}' leaves numbers out in a way of its own" if names else None


POOL_WINDOWS: GraphPass[GraphModule] = GraphPass("pool-windows", pool_windows, ensures=(_none_left,))
