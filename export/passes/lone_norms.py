"""BatchNorms that no convolution took in, written as what integer kernels compute.

Fold leaves a BatchNorm where the value before it is read elsewhere too (networks of pre-activation blocks), or is a
concatenation (DenseNet) or a pooled image. No runtime has an integer kernel for it: it would be computed in floats between two
conversions. But it is a depthwise 1x1 convolution, y_c = w_c x_c + b_c with w = gamma / sqrt(var + eps), b = beta - w mean, whose
weight has a scale for each channel and loses nothing in 8 bits. PT2E, left alone, would fuse it into a convolution before it
without a look at the other readers.
"""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.transposed_convs import norm_of
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_ATEN = torch.ops.aten
_CONVOLVE: Final = {3: _ATEN.conv1d.default, 4: _ATEN.conv2d.default}
_NORM: Final = _ATEN._native_batch_norm_legit_no_training.default


def lone_norms(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every BatchNorm with constant parameters on (batch, channels, *space); needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_lone_norm(node)]
    for node in found:
        _rewrite(graph, node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_lone_norm(node: Node) -> bool:
    if node.target is not _NORM or node.kwargs:
        return False
    parameters = node.args[1:5]
    given = all(parameter is None or is_constant(parameter) for parameter in parameters)
    (value, *_) = node.meta["val"]
    return given and value.ndim in _CONVOLVE and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _rewrite(graph: GraphModule, node: Node) -> None:
    scale, shift = norm_of(graph, node)
    channels, rank = len(scale), node.meta["val"][0].ndim
    with graph.graph.inserting_before(node):
        weight = add_buffer(graph, f"{node.name}_scale", scale.float().view(-1, *(1,) * (rank - 1)))
        bias = add_buffer(graph, f"{node.name}_shift", shift.float())
        geometry = ([1] * (rank - 2), [0] * (rank - 2), [1] * (rank - 2))
        conv = graph.graph.call_function(_CONVOLVE[rank], (node.args[0], weight, bias, *geometry, channels))
    for one in (weight, bias):
        one.meta["val"] = constant_of(graph, one)
    for user in list(node.users):
        conv.meta = dict(user.meta)
        user.replace_all_uses_with(conv)


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_lone_norm(node)]
    return f"BatchNorm '{names[0]}' is left" if names else None


LONE_NORMS: GraphPass[GraphModule] = GraphPass("lone-norms", lone_norms, ensures=(_none_left,))
