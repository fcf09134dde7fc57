"""Small helpers for `torch.fx` graphs of ATen ops whose weights are ``get_attr`` nodes."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Final, TypeGuard

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.errors import unknown_name
from edgefold.quantize.scheme import FIXED, Q

TRANSPOSED: Final = frozenset({torch.ops.aten.conv_transpose1d.default, torch.ops.aten.conv_transpose2d.input})
"""Transposed convolutions, weight (M, N / groups, *kernel)."""


def is_constant(node: object) -> TypeGuard[Node]:
    """Whether a node reads a weight or a buffer."""
    return isinstance(node, Node) and node.op == "get_attr"


def constant_of(module: GraphModule, node: Node) -> Tensor:
    """The tensor that a ``get_attr`` node reads."""
    value = attrgetter(str(node.target))(module)
    assert isinstance(value, Tensor)
    return value.detach()


def add_buffer(module: GraphModule, name: str, value: Tensor) -> Node:
    """Registers ``value`` under ``name`` (made unique) and adds the ``get_attr`` node at the insertion point."""
    unique, count = name, 0
    while hasattr(module, unique):
        count += 1
        unique = f"{name}_{count}"
    module.register_buffer(unique, value.detach().contiguous())
    return module.graph.get_attr(unique)


def add_clone(module: GraphModule, node: Node, users: Iterable[Node]) -> Node:
    """A clone of a node's value, which ``users`` read in its place: the same numbers with quantization parameters of its own."""
    with module.graph.inserting_after(node):
        copied = module.graph.call_function(torch.ops.aten.clone.default, (node,))
    copied.meta = {key: value for key, value in node.meta.items() if key not in (Q, FIXED)}
    for user in users:
        user.replace_input_with(node, copied)
    return copied


def module_path(node: Node) -> str:
    """The path of the innermost module that a node comes from, or the node's name outside of any."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return str(path) or node.name


def channel_axis(node: Node) -> int:
    """The axis of the output channels in the weight of a conv or linear layer: 1 where the conv is transposed, otherwise 0."""
    return 1 if node.target in TRANSPOSED else 0


def groups_of(node: Node) -> int:
    """The groups of a conv (``aten.conv2d`` and so on, or a transposed one); 1 for a linear layer."""
    groups = node.args[6] if len(node.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def output_nodes(module: GraphModule) -> tuple[Node, ...]:
    """The nodes whose values a flattened graph returns."""
    (values,) = module.graph.output_node().args
    assert isinstance(values, tuple | list)
    return tuple(value for value in values if isinstance(value, Node))


def layer_nodes(module: GraphModule, names: Iterable[str]) -> frozenset[str]:
    """The names of the nodes with weights that come from the layers ``names`` (module paths, or node names).

    Raises:
        UsageError: there is no such layer.
    """
    found: dict[str, set[str]] = {}
    told: set[str] = set()  # each layer once, by the name that its user knows
    for node in module.graph.nodes:
        if node.op == "call_function" and any(is_constant(argument) for argument in node.args[1:2]):
            told.add(module_path(node))
            for key in (module_path(node), node.name):
                found.setdefault(key, set()).add(node.name)
    nodes: set[str] = set()
    for name in names:
        if name not in found:
            raise unknown_name("layer", name, told)
        nodes |= found[name]
    return frozenset(nodes)
