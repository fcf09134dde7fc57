"""Adaptive average pooling in ops that runtimes have.

Where all windows are alike it is a mean, or average pooling with a fixed window: XNNPACK has no adaptive pooling, and an op that
it does not take cuts the network into two delegate calls. Where windows differ it is means of slices, first of rows and then of
columns, since every window is a rectangle: what LiteRT's converter makes of it otherwise holds the number of samples.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ADAPTIVE = torch.ops.aten.adaptive_avg_pool2d.default
_AVERAGE = torch.ops.aten.avg_pool2d.default
_MEAN = torch.ops.aten.mean.dim
_ORIGIN = ("nn_module_stack", "stack_trace")


def adaptive_pool(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every adaptive pooling of (N, C, H, W) whose output sizes divide H and W; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [(node, window) for node in graph.graph.nodes if (window := _window(node)) is not None]
    for node, window in found:
        height, width = node.meta["val"].shape[2:]
        if (height, width) == (1, 1):
            node.target, node.args = _MEAN, (node.args[0], [2, 3], True)
        else:
            node.target, node.args = _AVERAGE, (node.args[0], list(window), list(window))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _window(node: Node) -> tuple[int, int] | None:
    """The size of the windows, which are also the strides; ``None`` when they differ from place to place."""
    if node.target is not _ADAPTIVE or not isinstance(node.args[0], Node):
        return None
    source, result = node.args[0].meta["val"].shape, node.meta["val"].shape
    if len(source) != 4 or source[2] % result[2] or source[3] % result[3]:
        return None
    return source[2] // result[2], source[3] // result[3]


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _window(node) is not None]
    return f"adaptive pooling '{names[0]}' has windows of one size" if names else None


def uneven_pool(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every adaptive pooling of (N, C, H, W) that is left as means of slices; needs ``meta["val"]``, and sets none."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_uneven(node)]
    for node in found:
        source, (sizes, counts) = node.args[0], (value.meta["val"].shape[2:] for value in (node.args[0], node))
        for dim, size, count in zip((2, 3), sizes, counts, strict=True):
            if size != count:
                source = _means(graph, node, source, dim, size, count)
        source.meta = dict(node.meta)
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _means(graph: GraphModule, node: Node, source: Node, dim: int, size: int, count: int) -> Node:
    """``source`` with ``count`` means over windows of its dimension ``dim``, as PyTorch lays them out."""
    origin = {key: node.meta[key] for key in _ORIGIN if key in node.meta}
    with graph.graph.inserting_before(node):
        means = []
        for index in range(count):
            start, end = index * size // count, -(-(index + 1) * size // count)
            part = graph.graph.call_function(torch.ops.aten.slice.Tensor, (source, dim, start, end))
            means.append(graph.graph.call_function(_MEAN, (part, [dim], True)))
            part.meta, means[-1].meta = dict(origin), dict(origin)
        joined = graph.graph.call_function(torch.ops.aten.cat.default, (means, dim))
    joined.meta = dict(origin)
    return joined


def _is_uneven(node: Node) -> bool:
    return node.target is _ADAPTIVE and isinstance(node.args[0], Node) and node.meta["val"].ndim == 4


def _no_adaptive_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if node.target is _ADAPTIVE and "val" in node.meta and _is_uneven(node)]
    return f"adaptive pooling '{names[0]}' is still there" if names else None


UNEVEN_POOL: GraphPass[GraphModule] = GraphPass("uneven-pool", uneven_pool, ensures=(_no_adaptive_left,))
ADAPTIVE_POOL: GraphPass[GraphModule] = GraphPass("adaptive-pool", adaptive_pool, ensures=(_none_left,))
