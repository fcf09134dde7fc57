"""Softplus, the logarithm of a sigmoid, and Mish by ops that the converters for TFLite and ExecuTorch have.

What they make of them themselves compares with a threshold and leaves the delegate; ExecuTorch's runtime refused such files
between integer layers, and the converter for TFLite failed. Without a comparison, and without any overflow:

    softplus(x) = log(1 + e^(b x)) / b = max(x, 0) - log(sigmoid(|b x|)) / b
    log-sigmoid(x) = min(x, 0) + log(sigmoid(|x|))
    mish(x) = x tanh(softplus(x))        (Misra 2019)

Torch's softplus is x itself above a threshold (b x > 20), where that differs by 2e-9 at most.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ATEN = torch.ops.aten
_SOFTPLUS: Final = _ATEN.softplus.default
_LOG_SIGMOID: Final = _ATEN.log_sigmoid.default
_MISH: Final = _ATEN.mish.default
_KEPT: Final = ("val", "nn_module_stack", "stack_trace")
_LEAST_THRESHOLD: Final = 15.0  # e^-15 is 3e-7


def plain_softplus(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every softplus, log-sigmoid and Mish."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_wanted(node)]
    for node in found:
        with graph.graph.inserting_before(node):
            result = _Writer(graph, node).write()
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


class _Writer:
    """Writes what one node computes, before it."""

    def __init__(self, graph: GraphModule, node: Node) -> None:
        self._graph, self._node = graph, node

    def write(self) -> Node:
        source = self._node.args[0]
        if self._node.target is _SOFTPLUS:
            return self._softplus(source, float(_option(self._node, 1, "beta", 1.0)))
        if self._node.target is _MISH:
            return self._call(_ATEN.mul.Tensor, source, self._call(_ATEN.tanh.default, self._softplus(source, 1.0)))
        least = self._call(_ATEN.neg.default, self._call(_ATEN.relu.default, self._call(_ATEN.neg.default, source)))
        return self._call(_ATEN.add.Tensor, least, self._log(source))

    def _softplus(self, source: Any, beta: float) -> Node:
        if beta == 1.0:
            return self._call(_ATEN.sub.Tensor, self._call(_ATEN.relu.default, source), self._log(source))
        share = self._call(_ATEN.mul.Tensor, self._log(self._call(_ATEN.mul.Tensor, source, beta)), 1 / beta)
        return self._call(_ATEN.sub.Tensor, self._call(_ATEN.relu.default, source), share)

    def _log(self, source: Any) -> Node:
        """log(sigmoid(|source|))."""
        return self._call(_ATEN.log.default, self._call(_ATEN.sigmoid.default, self._call(_ATEN.abs.default, source)))

    def _call(self, target: Any, *arguments: Any) -> Node:
        made = self._graph.graph.call_function(target, arguments)
        made.meta = {key: value for key, value in self._node.meta.items() if key in _KEPT}
        return made


def _is_wanted(node: Node) -> bool:
    softplus = node.target is _SOFTPLUS and float(_option(node, 2, "threshold", 20.0)) >= _LEAST_THRESHOLD
    return softplus or node.target in (_LOG_SIGMOID, _MISH)


def _option(node: Node, place: int, name: str, default: float) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_wanted(node)]
    return f"'{names[0]}' is left" if names else None


PLAIN_SOFTPLUS: GraphPass[GraphModule] = GraphPass("plain-softplus", plain_softplus, ensures=(_none_left,))
