"""Values that are joined in float, kept apart in the LiteRT converter.

It gives all that a concat joins the scale of one part, whatever the scales of the others are, and makes the concat an integer
operator. So each part that was dequantized gets a mark.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.marks import add_mark
from edgefold.quantize.scheme import JOINED_FLOAT

_DEQUANTIZE: Final = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def hold_joins(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Put a mark between each dequantize node and the join in float that reads it."""
    graph = clone(graph)
    found = _bare(graph)
    for source, join in found:
        with graph.graph.inserting_before(join):
            join.replace_input_with(source, add_mark(graph, source))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _bare(graph: GraphModule) -> list[tuple[Node, Node]]:
    joins = [node for node in graph.graph.nodes if JOINED_FLOAT in node.meta]
    return [(source, join) for join in joins for source in join.all_input_nodes if source.target is _DEQUANTIZE]


def _none_bare(graph: GraphModule) -> str | None:
    names = [join.name for _, join in _bare(graph)]
    return f"'{names[0]}' reads a value without a mark" if names else None


HOLD_JOINS: GraphPass[GraphModule] = GraphPass("hold-joins", hold_joins, ensures=(_none_bare,))
