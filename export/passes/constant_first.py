"""Constants less, or over, a value, in forms that LiteRT's converter reads right.

Before a convolution or a linear layer it takes ``c - y`` for ``y - c`` and ``c / y`` for ``y / c``, and folds that into the
layer.

    c - y      −(y − c), which is the same number, and whose sign the converter folds into the layer
    c / y      c·y / (y·y), where nothing is a constant; as good wherever y·y is a float32 of full precision
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import is_constant
from edgefold.quantize.scheme import Q

_ATEN: Final = torch.ops.aten


def constant_first(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every such op whose result is not quantized: integers lie between it and the layer."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_difference(node) or _is_quotient(node)]
    for node in found:
        if _is_difference(node):
            node.args = (node.args[1], node.args[0])
            _negate(graph, node)
        else:
            _expand(graph, node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _negate(graph: GraphModule, node: Node) -> None:
    """Changes the sign of what all readers of a node get."""
    with graph.graph.inserting_after(node):
        negative = graph.graph.call_function(_ATEN.neg.default, (node,))
    negative.meta = dict(node.meta)
    node.replace_all_uses_with(negative, delete_user_cb=lambda user: user is not negative)


def _expand(graph: GraphModule, node: Node) -> None:
    """Multiplies both sides of a division by the divisor."""
    constant, divisor = (None, node.args[0]) if node.target is _ATEN.reciprocal.default else node.args
    with graph.graph.inserting_before(node):
        square = graph.graph.call_function(_ATEN.mul.Tensor, (divisor, divisor))
        above = divisor if constant is None else graph.graph.call_function(_ATEN.mul.Tensor, (divisor, constant))
    assert isinstance(divisor, Node)
    square.meta = {**node.meta, "val": divisor.meta["val"]}
    if isinstance(above, Node) and above is not divisor:
        above.meta = dict(node.meta)
    node.target, node.args = _ATEN.div.Tensor, (above, square)


def _is_difference(node: Node) -> bool:
    return node.target is _ATEN.sub.Tensor and Q not in node.meta and is_constant(node.args[0]) and not node.kwargs


def _is_quotient(node: Node) -> bool:
    if Q in node.meta:
        return False
    return node.target is _ATEN.reciprocal.default or (node.target is _ATEN.div.Tensor and is_constant(node.args[0]))


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_difference(node) or _is_quotient(node)]
    return f"'{names[0]}' still has a constant first" if names else None


CONSTANT_FIRST: GraphPass[GraphModule] = GraphPass("constant-first", constant_first, ensures=(_none_left,))
