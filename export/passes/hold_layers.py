"""Layers left in float among integers, kept in float by the LiteRT converter.

It makes an integer operator of any layer between dequantize and quantize nodes, and rounds a weight that has no scale to
one that nobody chose. So the input of each layer with a float weight gets a mark.
"""

from __future__ import annotations

from typing import Final

from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.marks import add_mark, is_mark
from edgefold.quantize.annotate import WEIGHTED
from edgefold.quantize.graph import TRANSPOSED, is_constant

_LAYERS: Final = WEIGHTED | TRANSPOSED


def hold_layers(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Put a mark before each layer whose weight is no dequantized one."""
    graph = clone(graph)
    bare = [node for node in graph.graph.nodes if _is_bare(node)]
    for layer in bare:
        with graph.graph.inserting_before(layer):
            layer.replace_input_with(layer.args[0], add_mark(graph, layer.args[0]))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(bare)


def _is_bare(node: Node) -> bool:
    if node.target not in _LAYERS or not is_constant(node.args[1]):
        return False
    source = node.args[0]
    return isinstance(source, Node) and not is_mark(source)


def _none_bare(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_bare(node)]
    return f"'{names[0]}' has no mark" if names else None


HOLD_LAYERS: GraphPass[GraphModule] = GraphPass("hold-layers", hold_layers, ensures=(_none_bare,))
