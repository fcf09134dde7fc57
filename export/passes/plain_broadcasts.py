"""Expanded values that are only added, multiplied or divided, as they were before: these ops expand by themselves.

LiteRT's converter moves the channels of what stands around an expansion to the end, and leaves the shape that it expands to: the
runtime refuses the file.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ATEN: Final = torch.ops.aten
_BINARY: Final = frozenset({_ATEN.add.Tensor, _ATEN.div.Tensor, _ATEN.mul.Tensor, _ATEN.sub.Tensor})


def plain_broadcasts(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Let every such op read what was expanded; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_implied(node)]
    for node in found:
        node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_implied(node: Node) -> bool:
    """Whether a node expands a value that is read only beside values of the shape that it has then."""
    if node.target is not _ATEN.expand.default or not node.users:
        return False
    return all(
        user.target in _BINARY
        and any(
            isinstance(other, Node)
            and other.target is not _ATEN.expand.default  # which might be gone itself
            and other.meta["val"].shape == node.meta["val"].shape
            for other in user.args[:2]
        )
        for user in node.users
    )


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_implied(node)]
    return f"'{names[0]}' expands what is expanded anyway" if names else None


PLAIN_BROADCASTS: GraphPass[GraphModule] = GraphPass("plain-broadcasts", plain_broadcasts, ensures=(_none_left,))
