"""Values that are rounded to one grid and then to another, rounded once, for ExecuTorch.

Its delegate computes the ops of a fixed range (sigmoid, softmax, tanh) in float, so that no kernel asks for the first grid.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_OPS = torch.ops.quantized_decomposed
_QUANTIZE: Final = _OPS.quantize_per_tensor.default
_DEQUANTIZE: Final = _OPS.dequantize_per_tensor.default


def one_rounding(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Let every second quantize node read what the first one reads."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_second(node)]
    for node in found:
        node.args = (_before(node), *node.args[1:])
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_second(node: Node) -> bool:
    return node.target is _QUANTIZE and _source(node).target is _DEQUANTIZE and _source(_source(node)).target is _QUANTIZE


def _before(node: Node) -> Any:
    """The real value behind a quantize node that follows a pair."""
    return _source(_source(_source(node)))


def _source(node: Node) -> Any:
    return node.args[0]


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_second(node)]
    return f"'{names[0]}' is rounded twice" if names else None


ONE_ROUNDING: GraphPass[GraphModule] = GraphPass("one-rounding", one_rounding, ensures=(_none_left,))
