"""Biases whose numbers are all the same, made to differ by the last bit of one.

The LiteRT converter keeps such a constant as one number, and then gives every output channel the integer that is right for the
first one, whatever its own scale is. An even bias is what a hard-sigmoid leaves in a layer (1/2) that had none.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import WEIGHTED
from edgefold.quantize.graph import add_buffer, constant_of, is_constant


def uneven_biases(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Move the last number of each even bias that is not zero to the next float32."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_even(graph, node)]
    for node in found:
        bias = constant_of(graph, node.args[2]).clone()
        bias[-1] = torch.nextafter(bias[-1], torch.tensor(math.inf))
        with graph.graph.inserting_before(node):
            node.args = (*node.args[:2], add_buffer(graph, f"{node.name}_bias_uneven", bias), *node.args[3:])
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_even(graph: GraphModule, node: Node) -> bool:
    if node.target not in WEIGHTED or len(node.args) < 3 or not is_constant(node.args[2]):
        return False
    bias = constant_of(graph, node.args[2])
    return len(bias) > 1 and bool(bias[0] != 0) and bool((bias == bias[0]).all())


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_even(graph, node)]
    return f"the bias of '{names[0]}' is even" if names else None


UNEVEN_BIASES: GraphPass[GraphModule] = GraphPass("uneven-biases", uneven_biases, ensures=(_none_left,))
