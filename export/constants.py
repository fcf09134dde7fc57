"""Computes the parts of a graph that depend on no input, so that weights are attributes and nothing else."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.node import map_arg

from edgefold.quantize.graph import add_buffer, constant_of

_ATEN = torch.ops.aten
_MAKES: Final = frozenset(
    {
        *(_ATEN.zeros.default, _ATEN.ones.default, _ATEN.full.default, _ATEN.eye.default, _ATEN.linspace.default),
        *(_ATEN.arange.default, _ATEN.arange.start, _ATEN.arange.start_step, _ATEN.scalar_tensor.default),
    }
)


def fold_constants(module: GraphModule, *, made: bool = False) -> None:
    """Replaces every op whose operands are all attributes by its result, in place; random draws stay.

    With ``made``, so do ops that make a tensor of numbers (``zeros``, ``arange``), unless the graph writes into tensors:
    positions are encoded so, by code that no input goes into.
    """
    made = made and not any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in module.graph.nodes)
    for node in list(module.graph.nodes):
        operands = node.all_input_nodes
        if node.op != "call_function" or any(operand.op != "get_attr" for operand in operands):
            continue
        if not operands and not (made and node.target in _MAKES):
            continue
        if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            continue  # a new value in every call
        args, kwargs = map_arg((node.args, node.kwargs), lambda operand: constant_of(module, operand))
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor):
            continue
        with module.graph.inserting_before(node):
            constant = add_buffer(module, f"{node.name}_constant", value)
        constant.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)
