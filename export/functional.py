"""Large graphs as they come from the exporter, made functional without tracing them a second time.

``run_decompositions`` runs every op of the captured graph again, under several modes: for a loop of a thousand convolutions that
is more than half of the time of a capture. Where a graph holds only ops that stay as they are there, and the few that are
rewritten here in the same way, the result is the same graph. Any other op, and any write that is not plainly into a tensor of
its own, leaves the graph to the exporter.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Graph, Node

MANY: Final = 1_000  # ops from which a second trace is dear

_ATEN: Final = torch.ops.aten
_FRESH: Final[frozenset[Any]] = frozenset(  # ops whose result is memory of its own
    {
        *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.linear.default),
        *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.cat.default, _ATEN.stack.default),
        *(_ATEN.sum.dim_IntList, _ATEN.mean.dim, _ATEN.roll.default, _ATEN.zeros.default, _ATEN.zeros_like.default),
        *(_ATEN.relu.default, _ATEN.relu6.default, _ATEN.hardswish.default, _ATEN.silu.default, _ATEN.gelu.default),
        *(_ATEN.sigmoid.default, _ATEN.tanh.default, _ATEN.leaky_relu.default, _ATEN.clamp.default),
        *(_ATEN.max_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool2d.default),
        *(_ATEN.batch_norm.default, _ATEN.linspace.default, _ATEN.ones.default, _ATEN.full.default, _ATEN.clone.default),
    }
)
_VIEWS: Final[frozenset[Any]] = frozenset(  # ops whose result may share memory with an operand
    {
        *(_ATEN.slice.Tensor, _ATEN.select.int, _ATEN.unsqueeze.default, _ATEN.squeeze.dim, _ATEN.permute.default),
        *(_ATEN.transpose.int, _ATEN.view.default, _ATEN.pad.default, _ATEN.einsum.default),
    }
)
_SHAPES: Final[frozenset[Any]] = frozenset({_ATEN.flatten.using_ints, _ATEN.reshape.default})
_WRITES: Final[dict[Any, Any]] = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.zero_.default: _ATEN.zero.default,
}
_TRAINING: Final[dict[Any, int]] = {_ATEN.batch_norm.default: 5, _ATEN.dropout.default: 2}  # the argument that says so


def is_simple(graph: Graph) -> bool:
    """Whether `make_functional` gives what ``run_decompositions({})`` would, but for the names of the nodes."""
    return all(_is_simple(node) for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output"))


def make_functional(graph: Graph) -> None:
    """Rewrites writes, normalisations and changes of shape of a simple graph, in place."""
    for node in list(graph.nodes):
        if node.target in _WRITES:
            node.target = _WRITES[node.target]  # nothing reads what was there before, or shares its memory
        elif node.target in _SHAPES:
            node.target, node.args, node.kwargs = _ATEN.reshape.default, (node.args[0], list(node.meta["val"].shape)), {}
        elif node.target is _ATEN.batch_norm.default:
            _normalize(graph, node)


def _is_simple(node: Node) -> bool:
    target: Any = node.target
    if node.op != "call_function":
        return False
    if target in _WRITES:
        return _writes_its_own(node)
    if target in _TRAINING:
        return len(node.args) > _TRAINING[target] and node.args[_TRAINING[target]] is False
    return target in _FRESH or target in _VIEWS or target in _SHAPES


def _writes_its_own(node: Node) -> bool:
    """Whether nothing sees a write but through its result: no view of the tensor that is written, no reader of it later."""
    written = node.args[0]
    if not isinstance(written, Node) or not (written.target in _FRESH or written.target in _WRITES):
        return False
    if any(isinstance(one, Tensor) and one.dtype != node.meta["val"].dtype for one in map(_value, node.all_input_nodes)):
        return False  # the sum would have another type
    return all(user is node or (user.target in _FRESH and user < node) for user in written.users)


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _normalize(graph: Graph, node: Node) -> None:
    x, weight, bias, mean, variance, _, momentum, epsilon = node.args[:8]
    with graph.inserting_before(node):
        norm = graph.call_function(
            _ATEN._native_batch_norm_legit_no_training.default, (x, weight, bias, mean, variance, momentum, epsilon)
        )
        first = graph.call_function(operator.getitem, (norm, 0))
    value = node.meta["val"]
    norm.meta, first.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}, dict(node.meta)
    node.replace_all_uses_with(first)
    graph.erase_node(node)
