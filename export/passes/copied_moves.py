"""Permutations that make a value of their own, for ExecuTorch.

A permutation in torch is a view, and a reshape of its value first copies it. ExecuTorch writes that copy as an op between the
dequantize node and the reshape, so that its delegate sees no integer reshape, and computes it in float between two
conversions. Where the permutation itself makes a contiguous value, no other copy is needed.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ATEN = torch.ops.aten
_COPY: Final = _ATEN.permute_copy.default


def copied_moves(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every permutation and transposition; needs ``meta["val"]``, whose strides are not kept up to date."""
    graph = clone(graph)
    found = [(node, order) for node in graph.graph.nodes if (order := _order(node)) is not None]
    for node, order in found:
        node.target, node.args, node.kwargs = _COPY, (node.args[0], order), {}
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _order(node: Node) -> list[int] | None:
    """Which dimension each of the result is, if a node is such a view."""
    if node.target is _ATEN.permute.default:
        return list(_arguments(node, "dims"))
    if node.target is not _ATEN.transpose.int:
        return None
    order = list(range(node.meta["val"].ndim))
    one, other = _arguments(node, "dim0", "dim1")
    order[one], order[other] = order[other], order[one]
    return order


def _arguments(node: Node, *names: str) -> Any:
    """What follows the input, by place or by name."""
    values = [node.args[place] if place < len(node.args) else node.kwargs[name] for place, name in enumerate(names, start=1)]
    return values[0] if len(values) == 1 else values


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _order(node) is not None]
    return f"'{names[0]}' is a view" if names else None


COPIED_MOVES: GraphPass[GraphModule] = GraphPass("copied-moves", copied_moves, ensures=(_none_left,))
