"""A graph that computes in float16, with float32 at its ends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_TO = torch.ops.aten.to.dtype


def half_compute(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Cast float32 inputs and weights to float16 and outputs back; needs ``meta["val"]`` on the ends.

    Weights beyond float16's range saturate; `edgefold.export.verify` shows what that costs.
    """
    graph = clone(graph)
    nodes = list(graph.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][-1:]
    for node in nodes:
        if node.op == "placeholder" and _is_float(node):
            with graph.graph.inserting_after(last[0]):
                narrow = graph.graph.call_function(_TO, (node, torch.float16))
            narrow.meta = dict(node.meta)
            node.replace_all_uses_with(narrow, delete_user_cb=lambda user, keep=narrow: user is not keep)
        elif is_constant(node) and constant_of(graph, node).dtype == torch.float32:
            limit = torch.finfo(torch.float16).max
            with graph.graph.inserting_before(node):
                value = constant_of(graph, node).clamp(-limit, limit).half()
                node.replace_all_uses_with(add_buffer(graph, f"{node.name}_f16", value))
            graph.graph.erase_node(node)
        elif node.op == "output":
            for value in dict.fromkeys(node.all_input_nodes):
                if _is_float(value):
                    with graph.graph.inserting_before(node):
                        wide = graph.graph.call_function(_TO, (value, torch.float32))
                    wide.meta = dict(value.meta)
                    node.replace_input_with(value, wide)
    graph.graph.lint()
    graph.recompile()
    return graph, True


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _no_float_weights(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if is_constant(node) and constant_of(graph, node).dtype == torch.float32]
    return f"weight '{names[0]}' is float32" if names else None


HALF_COMPUTE: GraphPass[GraphModule] = GraphPass("half-compute", half_compute, ensures=(_no_float_weights,))
