"""Additions of a constant written as subtractions of its negative.

The LiteRT converter writes no addition of 16-bit integers with a broadcast, although the runtime has a kernel for it; it does
write a subtraction. The constant's integers are symmetric, so the negative has the same scale.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_ADD: Final = torch.ops.aten.add.Tensor
_SUB: Final = torch.ops.aten.sub.Tensor
_DEQUANTIZE: Final = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def subtract_constants(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite each addition of a quantized constant; the graph has quantize and dequantize nodes, and float constants."""
    graph = clone(graph)
    modified = False
    for node in list(graph.graph.nodes):
        for place in (1, 0):
            quantize = _constant(node, place)
            if quantize is not None:
                (source,) = quantize.all_input_nodes
                with graph.graph.inserting_before(quantize):
                    negative = add_buffer(graph, f"{node.name}_negative", -constant_of(graph, source))
                quantize.replace_input_with(source, negative)
                node.target, node.args = _SUB, (node.args[1 - place], node.args[place])
                modified = True
                break
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def _constant(node: Node, place: int) -> Node | None:
    """The quantize node of a constant that stands in a place of an addition, and has no other reader."""
    if node.target is not _ADD or len(node.args) != 2 or node.kwargs:
        return None
    dequantize = node.args[place]
    if not isinstance(dequantize, Node) or dequantize.target is not _DEQUANTIZE:
        return None
    quantize = dequantize.args[0]
    if not isinstance(quantize, Node) or quantize.op != "call_function":
        return None
    alone = len(quantize.users) == len(dequantize.users) == 1
    return quantize if alone and is_constant(quantize.args[0]) else None


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if any(_constant(node, place) is not None for place in (0, 1))]
    return f"'{names[0]}' still adds a constant" if names else None


SUBTRACT_CONSTANTS: GraphPass[GraphModule] = GraphPass("subtract-constants", subtract_constants, ensures=(_none_left,))
