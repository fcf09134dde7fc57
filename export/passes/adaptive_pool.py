"""Adaptive average pooling whose windows are all alike, written as what it is: a mean, or average pooling with a fixed window.

XNNPACK has no adaptive pooling, and an op that it does not take cuts the network into two delegate calls.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ADAPTIVE = torch.ops.aten.adaptive_avg_pool2d.default
_AVERAGE = torch.ops.aten.avg_pool2d.default
_MEAN = torch.ops.aten.mean.dim


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


ADAPTIVE_POOL: GraphPass[GraphModule] = GraphPass("adaptive-pool", adaptive_pool, ensures=(_none_left,))
