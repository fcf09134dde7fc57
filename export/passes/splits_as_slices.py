"""A split as a slice for each part, for ExecuTorch.

XNNPACK's partitioner takes slices and no split: each split ran outside of the delegate, between two copies of its image (and in
INT8 between conversions to float and back), and ended a partition.
"""

from __future__ import annotations

import itertools
import operator

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import SPLITS

_ATEN = torch.ops.aten


def splits_as_slices(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every split that is not along the batch; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_wanted(node)]
    for node in found:
        axis = _axis(node)
        ends = list(itertools.accumulate((value.shape[axis] for value in node.meta["val"]), initial=0))
        bounds = list(itertools.pairwise(ends))
        for part in list(node.users):  # two may take the same part
            with graph.graph.inserting_before(part):
                piece = graph.graph.call_function(_ATEN.slice.Tensor, (node.args[0], axis, *bounds[part.args[1]]))
            piece.meta = dict(part.meta)  # with its grid of integers
            part.replace_all_uses_with(piece)
            graph.graph.erase_node(part)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_wanted(node: Node) -> bool:
    if node.target not in SPLITS or any(user.target is not operator.getitem for user in node.users):
        return False
    return _axis(node) != 0  # a batch may be open


def _axis(node: Node) -> int:
    axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    assert isinstance(axis, int)
    rank: int = node.meta["val"][0].ndim
    return axis % rank


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_wanted(node)]
    return f"'{names[0]}' is a split" if names else None


SPLITS_AS_SLICES: GraphPass[GraphModule] = GraphPass("splits-as-slices", splits_as_slices, ensures=(_none_left,))
