"""Average pooling that leaves its padding out of the mean, in forms that TFLite has an operator for.

TFLite's AVERAGE_POOL_2D leaves the padding out too, but pads in its own way, SAME: with the same number on both sides only at
some sizes and strides. What the converter cannot express so, it writes as a reduction with subgraphs of its own; a stride of 2
so too where it is SAME.

    odd kernel     stride 1 with padding (K−1)/2, which is SAME at any size; then every s-th row and column is kept.
                   Nothing is rounded anew, so that it stays in integers
    even kernel    the padding is counted, and each place is multiplied by K² over the number of its values in the image
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer
from edgefold.quantize.scheme import Q

_AVERAGE: Final = torch.ops.aten.avg_pool2d.default
_SLICE: Final = torch.ops.aten.slice.Tensor
_MULTIPLY: Final = torch.ops.aten.mul.Tensor


@dataclass(frozen=True, slots=True)
class _Pool:
    """The geometry of one pooling, as (height, width)."""

    source: Node
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]


def pool_windows(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every such pooling of (N, C, H, W); needs ``meta["val"]``."""
    graph = clone(graph)
    found = [(node, pool) for node in graph.graph.nodes if (pool := _pool(node)) is not None]
    for node, pool in found:
        if all(side % 2 for side in pool.kernel):
            _keep_some(graph, node, pool)
        else:
            _rescale(graph, node, pool)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _keep_some(graph: GraphModule, node: Node, pool: _Pool) -> None:
    middle = [side // 2 for side in pool.kernel]
    result = node.meta["val"].shape[2:]
    with graph.graph.inserting_before(node):
        value = _call(graph, node, _AVERAGE, pool.source, list(pool.kernel), [1, 1], middle, False, False)
        for axis in (0, 1):
            first, step = middle[axis] - pool.padding[axis], pool.stride[axis]
            last = first + (result[axis] - 1) * step + 1
            if (first, step, last) != (0, 1, pool.size[axis]):
                value = _call(graph, node, _SLICE, value, 2 + axis, first, last, step)
    _replace(graph, node, value)


def _rescale(graph: GraphModule, node: Node, pool: _Pool) -> None:
    share = F.avg_pool2d(torch.ones(1, 1, *pool.size), pool.kernel, pool.stride, pool.padding)
    with graph.graph.inserting_before(node):
        mean = _call(graph, node, _AVERAGE, pool.source, list(pool.kernel), list(pool.stride), list(pool.padding), False, True)
        mean.meta.pop(Q, None)  # the grid is that of the result
        value = _call(graph, node, _MULTIPLY, mean, add_buffer(graph, f"{node.name}_share", 1 / share))
    _replace(graph, node, value)


def _call(graph: GraphModule, origin: Node, target: Any, *args: Any) -> Node:
    """A new node that comes from the same layer, and lies on the same integer grid, as ``origin``."""
    made = graph.graph.call_function(target, args)
    made.meta = dict(origin.meta)
    values = [_value(graph, arg) if isinstance(arg, Node) else arg for arg in args]
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
    """A pooling that leaves out its padding, and is not one of stride 1 and SAME; ``None`` for any other node."""
    source = node.args[0] if node.target is _AVERAGE and not node.kwargs else None
    if not isinstance(source, Node):
        return None
    sides, steps, pads, ceil, counted, divisor = average_options(node)
    if ceil or counted or divisor is not None:
        return None
    shape = source.meta["val"].shape
    if len(shape) != 4 or not any(pads):
        return None
    size = (int(shape[2]), int(shape[3]))
    alike = steps == (1, 1) and all(side - 1 == 2 * pad for side, pad in zip(sides, pads, strict=True))
    return None if alike else _Pool(source, sides, steps, pads, size)


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
    return f"average pooling '{names[0]}' leaves out padding, and is not of stride 1 and SAME" if names else None


POOL_WINDOWS: GraphPass[GraphModule] = GraphPass("pool-windows", pool_windows, ensures=(_none_left,))
