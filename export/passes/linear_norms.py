"""BatchNorms after linear layers, in the weights of these layers.

PT2E takes them in by itself when it calibrates, and takes away the value that has been annotated. Over a sequence, (batch,
length, features), a BatchNorm has a factor a place, not a feature: then it is a product and a sum.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.transposed_convs import norm_after, norm_of
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_ATEN: Final = torch.ops.aten


def linear_norms(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Take in every such BatchNorm; needs ``meta["val"]``."""
    found = [node for node in graph.graph.nodes if _is_normed(node)]
    if not found:
        return graph, False
    graph = clone(graph)
    for node in [node for node in graph.graph.nodes if _is_normed(node)]:
        norm = norm_after(node)
        assert norm is not None
        scale, shift = norm_of(graph, norm)
        (result,) = norm.users
        with graph.graph.inserting_before(node if _is_flat(node) else norm):
            value = _taken_in(graph, node, scale, shift) if _is_flat(node) else _apart(graph, node, scale, shift)
        value.meta |= {"val": result.meta["val"]}
        result.replace_all_uses_with(value)
        for one in (result, norm):
            graph.graph.erase_node(one)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, True


def _is_normed(node: Node) -> bool:
    if node.target is not _ATEN.linear.default or not all(is_constant(one) for one in node.args[1:] if one is not None):
        return False
    return norm_after(node) is not None


def _is_flat(node: Node) -> bool:
    """Whether a layer gives (batch, features)."""
    return bool(node.meta["val"].ndim == 2)


def _taken_in(module: GraphModule, node: Node, scale: Tensor, shift: Tensor) -> Node:
    """The layer with other weights (N, M) and another bias (N,)."""
    source, weight_node, *rest = node.args
    assert isinstance(weight_node, Node)
    weight = constant_of(module, weight_node)
    bias = shift if not rest or rest[0] is None else constant_of(module, rest[0]) * scale + shift  # type: ignore[arg-type]  # a node
    node.args = (
        source,
        _constant(module, node, "norm", weight * scale[:, None]),
        _constant(module, node, "norm_bias", bias),
    )
    return node


def _apart(module: GraphModule, node: Node, scale: Tensor, shift: Tensor) -> Node:
    """A product and a sum behind the layer, a number for each place of the second dimension."""
    shape = (1, -1, *[1] * (node.meta["val"].ndim - 2))
    value = node
    steps: tuple[tuple[Any, str, Tensor], ...] = ((_ATEN.mul.Tensor, "norm", scale), (_ATEN.add.Tensor, "norm_bias", shift))
    for target, name, numbers in steps:
        constant = _constant(module, node, name, numbers.reshape(shape))
        value = module.graph.call_function(target, (value, constant))
        value.meta = dict(node.meta)
    return value


def _constant(module: GraphModule, node: Node, name: str, value: Tensor) -> Node:
    made = add_buffer(module, f"{node.name}_{name}", value.to(node.meta["val"].dtype))
    made.meta["val"] = node.meta["val"].new_empty(value.shape)
    return made


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_normed(node)]
    return f"'{names[0]}' has a BatchNorm behind it" if names else None


LINEAR_NORMS: GraphPass[GraphModule] = GraphPass("linear-norms", linear_norms, ensures=(_none_left,))
