"""Means over the one spatial dimension of (N, C, L), written as those of (N, C, L, 1).

XNNPACK averages images only. A mean of rows, and adaptive pooling of rows to one number, would cut the network into several calls
of the delegate, with float arithmetic between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.scheme import Q

_ADAPTIVE = torch.ops.aten.adaptive_avg_pool1d.default
_MEAN = torch.ops.aten.mean.dim
_RESHAPE = torch.ops.aten.reshape.default
_ORIGIN = ("nn_module_stack", "stack_trace")


def row_means(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every such mean; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_row_mean(node)]
    for node in found:
        source, value = node.args[0], node.meta["val"]
        with graph.graph.inserting_before(node):
            image = _reshaped(graph, source, source.meta["val"][..., None], {**_origin(node), **_grid(source)})
            mean = graph.graph.call_function(_MEAN, (image, [2, 3], True))
            mean.meta = dict(node.meta, val=value.reshape(*value.shape[:2], 1, 1))
            rows = _reshaped(graph, mean, value, {**_origin(node), **_grid(node)})
        node.replace_all_uses_with(rows)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _reshaped(graph: GraphModule, source: Node, value: torch.Tensor, meta: Mapping[str, Any]) -> Node:
    node = graph.graph.call_function(_RESHAPE, (source, list(value.shape)))
    node.meta = dict(meta, val=value)
    return node


def _origin(node: Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in _ORIGIN if key in node.meta}


def _grid(node: Node) -> dict[str, Any]:
    return {Q: node.meta[Q]} if Q in node.meta else {}


def _is_row_mean(node: Node) -> bool:
    if node.target not in (_ADAPTIVE, _MEAN) or not isinstance(node.args[0], Node) or node.args[0].meta["val"].ndim != 3:
        return False
    if node.target is _ADAPTIVE:
        return bool(node.meta["val"].shape[2] == 1)
    dims = node.args[1]
    return isinstance(dims, list | tuple) and node.kwargs.get("dtype") is None and [int(dim) % 3 for dim in dims] == [2]  # type: ignore[arg-type]  # ints in ATen


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if "val" in node.meta and _is_row_mean(node)]
    return f"'{names[0]}' is a mean of rows" if names else None


ROW_MEANS: GraphPass[GraphModule] = GraphPass("row-means", row_means, ensures=(_none_left,))
