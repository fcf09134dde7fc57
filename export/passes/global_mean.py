"""A mean over all spatial positions, written in the one form that every converter has a kernel for.

``mean(x, (2, 3))`` becomes ``mean(x, (2, 3), keepdim=True)`` followed by a reshape: XNNPACK takes only that form, ONNX calls
it GlobalAveragePool, and in TFLite the layout change before it goes away.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_MEAN = torch.ops.aten.mean.dim
_RESHAPE = torch.ops.aten.reshape.default


def global_mean(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every spatial mean that drops its dimensions; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _drops_spatial(node)]
    for node in found:
        value: Tensor = node.meta["val"]
        with graph.graph.inserting_after(node):
            reshape = graph.graph.call_function(_RESHAPE, (node, list(value.shape)))
        node.replace_all_uses_with(reshape, delete_user_cb=lambda user, keep=reshape: user is not keep)
        reshape.meta = dict(node.meta)
        node.args = (node.args[0], [2, 3], True)
        node.meta["val"] = value[:, :, None, None]
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _drops_spatial(node: Node) -> bool:
    if node.target is not _MEAN or node.kwargs.get("dtype") is not None:
        return False
    source, dims, *keep = node.args
    if not isinstance(source, Node) or not isinstance(dims, list | tuple) or (keep and keep[0]):
        return False
    rank = source.meta["val"].ndim
    return rank == 4 and sorted(int(dim) % rank for dim in dims) == [2, 3]  # type: ignore[arg-type]  # ints in ATen


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _drops_spatial(node)]
    return f"mean '{names[0]}' still drops its dimensions" if names else None


GLOBAL_MEAN: GraphPass[GraphModule] = GraphPass("global-mean", global_mean, ensures=(_none_left,))
