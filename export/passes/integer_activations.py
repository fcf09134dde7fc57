"""Hard-swish, hard-sigmoid and swish in the ops that integer backends have: convolution, addition, product, saturation, sigmoid.

Integer kernels of their own exist for none in XNNPACK's delegate for LiteRT, ONNX Runtime or ExecuTorch, so a quantized
network leaves the delegate, or turns to float, at each of them. The hard ones are piecewise quadratic at most, and a constant
factor goes into the weights of the layer before them without changing one integer of it:

    hard-sigmoid(x) = clip(x / 6 + 1/2, 0, 1)         is the layer itself, with weights / 6 and bias / 6 + 1/2, clipped;
    hard-swish(x)   = x * clip(x + 3, 0, 6) / 6       is, with a = 1 / sqrt(6) and z = max(a x, -3 a) made by the layer,
                    = z * clip(z + 3 a, 0, 6 a)       since a * 6 a = 1; where x < -3 the second factor is 0.

The lower bound of z spares the integers of the values that hard-swish makes zero. A hard-swish after anything else than a
layer takes its factor 1/6 in one more product: z = x / 6, hard-swish(x) = x * clip(z + 1/2, 0, 1).

Swish (SiLU) is x * sigmoid(x); the sigmoid is a table of 256 integers in all three runtimes.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import WEIGHTED
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_ATEN = torch.ops.aten
_HARD_SIGMOID: Final = _ATEN.hardsigmoid.default
_HARD_SWISH: Final = _ATEN.hardswish.default
_SWISH: Final = _ATEN.silu.default


def integer_activations(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every hard-swish and swish, and every hard-sigmoid that alone reads a conv or linear with constant weights; needs
    ``meta["val"]``."""
    graph = clone(graph)
    modified = False
    for node in list(graph.graph.nodes):
        layer = _layer_before(node)
        if node.target is _HARD_SIGMOID and layer is not None:
            _sigmoid_in_layer(graph, node, layer)
        elif node.target is _HARD_SWISH and layer is not None:
            _hard_swish_after_layer(graph, node, layer)
        elif node.target is _HARD_SWISH:
            _hard_swish(graph, node)
        elif node.target is _SWISH:
            _swish(graph, node)
        else:
            continue
        modified = True
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def _layer_before(node: Node) -> Node | None:
    """The conv or linear whose only reader is ``node``."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.target not in WEIGHTED or len(source.users) != 1:
        return None
    parameters = source.args[1:3]
    return source if all(value is None or is_constant(value) for value in parameters) else None


def _sigmoid_in_layer(graph: GraphModule, node: Node, layer: Node) -> None:
    _scale_layer(graph, layer, 1 / 6, shift=0.5)
    with graph.graph.inserting_before(node):
        clip = graph.graph.call_function(_ATEN.clamp.default, (layer, 0.0, 1.0))
    _replace(node, clip)


def _hard_swish_after_layer(graph: GraphModule, node: Node, layer: Node) -> None:
    factor = 1 / math.sqrt(6)
    _scale_layer(graph, layer, factor)
    with graph.graph.inserting_before(node):
        z = graph.graph.call_function(_ATEN.clamp.default, (layer, -3 * factor))
        z.meta = dict(node.meta)
        gate = _gate(graph, node, z, 3 * factor)
        product = graph.graph.call_function(_ATEN.mul.Tensor, (z, gate))
    _replace(node, product)


def _hard_swish(graph: GraphModule, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    with graph.graph.inserting_before(node):
        sixth = add_buffer(graph, f"{node.name}_sixth", _number(node, 1 / 6))
        z = graph.graph.call_function(_ATEN.mul.Tensor, (source, sixth))
        z.meta = dict(node.meta)
        gate = _gate(graph, node, z, 0.5)
        product = graph.graph.call_function(_ATEN.mul.Tensor, (source, gate))
    _replace(node, product)


def _swish(graph: GraphModule, node: Node) -> None:
    source = node.args[0]
    with graph.graph.inserting_before(node):
        gate = graph.graph.call_function(_ATEN.sigmoid.default, (source,))
        gate.meta = dict(node.meta)
        product = graph.graph.call_function(_ATEN.mul.Tensor, (source, gate))
    _replace(node, product)


def _gate(graph: GraphModule, like: Node, source: Node, half: float) -> Node:
    """clip(source + half, 0, 2 half)."""
    constant = add_buffer(graph, f"{like.name}_shift", _number(like, half))
    total = graph.graph.call_function(_ATEN.add.Tensor, (source, constant))
    clip = graph.graph.call_function(_ATEN.clamp.default, (total, 0.0, 2 * half))
    for node in (total, clip):
        node.meta = dict(like.meta)
    return clip


def _number(like: Node, value: float) -> Tensor:
    """A number of the rank of ``like``: converters that change the order of dimensions do not look through a broadcast."""
    return torch.full((1,) * like.meta["val"].ndim, value)


def _scale_layer(graph: GraphModule, layer: Node, factor: float, shift: float = 0.0) -> None:
    """Make a layer compute ``factor`` times what it did, plus ``shift``."""
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight, Node)
    values = constant_of(graph, weight)
    offset: Tensor = torch.zeros(len(values)) if bias is None else constant_of(graph, bias)  # type: ignore[arg-type]  # a constant
    arguments = [*layer.args, None][: max(3, len(layer.args))]
    with graph.graph.inserting_before(layer):
        arguments[1] = add_buffer(graph, f"{layer.name}_scaled_weight", values * factor)
        arguments[2] = add_buffer(graph, f"{layer.name}_scaled_bias", offset * factor + shift)
    layer.args = tuple(arguments)


def _replace(node: Node, result: Node) -> None:
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if node.target in (_HARD_SWISH, _SWISH)]
    return f"'{names[0]}' is left" if names else None


INTEGER_ACTIVATIONS: GraphPass[GraphModule] = GraphPass("integer-activations", integer_activations, ensures=(_none_left,))
