"""Any number of samples where the captured graph has the example's: sizes of the first dimension are left open.

A reshape to (N, ...) becomes one to (-1, ...), and an expansion keeps the first size. That each sample is then still computed as
if it were alone is not assumed but checked, node by node, on two batches at once against one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgefold.errors import UnsupportedError, first_line
from edgefold.export.passes.infra import clone

_RESHAPES: Final = frozenset(
    {
        torch.ops.aten.reshape.default,
        torch.ops.aten.view.default,
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.expand.default,
    }
)
# Their first state has a fixed number of samples, of the graph's time or of the second axis; torch's kernels do not check it, and
# write past its end.
_RECURRENT: Final = ("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer")
# Of the largest value of a node: another batch may take another kernel, which adds in another order.
_TOLERANCE: Final = 1e-4


def dynamic_batch(graph: GraphModule, examples: Sequence[Tensor]) -> GraphModule:
    """The graph for any batch size; needs ``meta["val"]``.

    Args:
        graph: for inputs of the shapes of ``examples``, batch first.
        examples: one batch.

    Raises:
        UnsupportedError: an op mixes samples or needs a fixed number of them; the op is named.
    """
    opened = clone(graph)
    for node in opened.graph.nodes:
        if _op(node) in _RECURRENT:
            raise _pinned(node, "its state has a fixed number of samples")
        if node.target in _RESHAPES and isinstance(node.args[0], Node) and node.args[0].op != "get_attr":
            # The captured sizes, not the call's: these may have a -1 of their own, and one call has only one.
            node.args = (node.args[0], [-1, *node.meta["val"].shape[1:]])
    opened.recompile()
    _check(graph, opened, examples)
    return opened


def _check(graph: GraphModule, opened: GraphModule, examples: Sequence[Tensor]) -> None:
    """Two batches, of which the second holds other numbers, through ``graph`` one by one and through ``opened`` at once."""
    generator = torch.Generator().manual_seed(0)
    others = [torch.randn(one.shape, generator=generator).to(one.dtype) if one.is_floating_point() else one for one in examples]
    first, second = _Steps(graph, examples), _Steps(graph, others)
    both = _Steps(opened, [torch.cat(pair) for pair in zip(examples, others, strict=True)])
    depends: set[str] = set()
    for node, twin in zip(graph.graph.nodes, opened.graph.nodes, strict=True):
        if node.op == "output":
            break
        reason = ""
        parts = [first.step(node), second.step(node)]
        try:
            value = both.step(twin)
        except Exception as error:  # torch raises whatever its kernels raise
            reason = first_line(error)
        if node.op == "placeholder" or any(source.name in depends for source in node.all_input_nodes):
            depends.add(node.name)
            reason = reason or _difference(parts, value)
        if reason:
            raise _pinned(node, reason)


def _pinned(node: Node, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the batch size cannot be left open: '{_place(node)}' ({_op(node)}) pins it ({reason}); "
        "leave --dynamic-batch out, or write the op for one sample"
    )


class _Steps(Interpreter):
    """Runs a graph node by node; values go when nothing needs them any more."""

    def __init__(self, graph: GraphModule, inputs: Sequence[Tensor]) -> None:
        super().__init__(graph)
        self.args_iter = iter(inputs)

    def step(self, node: Node) -> Any:
        """Computes one node."""
        with torch.no_grad():
            self.env[node] = self.run_node(node)
        for gone in self.user_to_last_uses.get(node, ()):
            if gone is not node:
                self.env.pop(gone, None)
        return self.env[node]


def _difference(parts: list[Any], both: Any) -> str:
    """How the result of both batches at once differs from theirs one by one; empty where it does not."""
    if not isinstance(both, Tensor):  # a list of tensors: its parts are nodes of their own
        return ""
    if not parts[0].ndim or both.shape != (2 * len(parts[0]), *parts[0].shape[1:]):
        return f"its result is {tuple(parts[0].shape)} for one batch and {tuple(both.shape)} for two"
    apart = (torch.cat(parts).double() - both.double()).abs().max()
    return "" if apart <= _TOLERANCE * max(1e-6, float(both.abs().max())) else "its result for a sample depends on the others"


def _op(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _place(node: Node) -> str:
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return path or node.name
