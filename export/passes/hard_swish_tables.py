"""Hard-swish in one op again, for ExecuTorch, whose delegate looks an op of one 8-bit input up in a table of 256 integers.

`edgefold.export.passes.integer_activations` writes hard-swish as z · clip(z + 3a, 0, 6a) with a = 1 / √6, whose factor is in the
layer before it, or as x · clip(x / 6 + 1/2, 0, 1): an addition and a product of integers, which every runtime has. Taking the
factor out of the layer changes none of its integers: weights, bias, their scales and the scale of z are √6 times as large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer, constant_of, is_constant
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

_ATEN = torch.ops.aten
_FACTOR: Final = math.sqrt(6)
_HALF: Final = 3 / _FACTOR  # of the gate, in z


@dataclass(frozen=True, slots=True)
class _Swish:
    """A product that is the hard-swish of ``source``; with ``layer``, of √6 times the source, whose factor is in that layer."""

    product: Node
    source: Node
    layer: Node | None = None


def hard_swish_tables(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Write every hard-swish of a quantized value as one op."""
    graph = clone(graph)
    found = [swish for node in graph.graph.nodes if (swish := _swish(graph, node)) is not None]
    for swish in found:
        if swish.layer is not None:
            _take_out(graph, swish.layer, swish.source)
        with graph.graph.inserting_before(swish.product):
            table = graph.graph.call_function(_ATEN.hardswish.default, (swish.source,))
        table.meta = dict(swish.product.meta)
        swish.product.replace_all_uses_with(table)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _swish(graph: GraphModule, node: Node) -> _Swish | None:
    if node.target is not _ATEN.mul.Tensor or Q not in node.meta:
        return None
    source, gate = node.args
    if not (isinstance(source, Node) and isinstance(gate, Node) and Q in source.meta):
        return None
    if _is_clamp(gate, 0.0, 2 * _HALF) and _is_clamp(source, -_HALF, None):
        total, layer = _source(gate), _source(source)
        alone = set(source.users) == {total, node} and len(total.users) == len(gate.users) == len(layer.users) == 1
        sums = total.target is _ATEN.add.Tensor and total.args[0] is source and _is_number(graph, total.args[1], _HALF)
        return _Swish(node, source, layer) if alone and sums and WEIGHT_SCALE in layer.meta else None
    if _is_clamp(gate, 0.0, 1.0):
        total = _source(gate)
        sixth = _source(total)
        sums = total.target is _ATEN.add.Tensor and _is_number(graph, total.args[1], 0.5)
        scaled = sixth.target is _ATEN.mul.Tensor and sixth.args[0] is source and _is_number(graph, sixth.args[1], 1 / 6)
        return _Swish(node, source) if sums and scaled else None
    return None


def _source(node: Node) -> Any:
    return node.args[0]


def _is_clamp(node: Node, low: float, high: float | None) -> bool:
    if node.target is not _ATEN.clamp.default:
        return False
    bounds = [*node.args[1:], None][:2]
    return all(
        found == wanted or (isinstance(found, int | float) and wanted is not None and math.isclose(found, wanted, rel_tol=1e-6))
        for found, wanted in zip(bounds, (low, high), strict=True)
    )


def _is_number(graph: GraphModule, node: object, value: float) -> bool:
    if not isinstance(node, Node) or not is_constant(node):
        return False
    found = constant_of(graph, node)
    return found.numel() == 1 and math.isclose(float(found), value, rel_tol=1e-6)


def _take_out(graph: GraphModule, layer: Node, clipped: Node) -> None:
    """Makes a layer, and the clip that alone reads it, √6 times as large."""
    arguments = list(layer.args)
    with graph.graph.inserting_before(layer):
        for place, name in ((1, "weight"), (2, "bias")):
            old = arguments[place] if place < len(arguments) else None
            if isinstance(old, Node):
                value: Tensor = constant_of(graph, old) * _FACTOR
                arguments[place] = add_buffer(graph, f"{layer.name}_{name}_unscaled", value)
    layer.args = tuple(arguments)
    layer.meta[WEIGHT_SCALE] = layer.meta[WEIGHT_SCALE] * _FACTOR
    clipped.args = (layer, -3.0)
    clipped.meta[Q] = replace(clipped.meta[Q], scale=clipped.meta[Q].scale * _FACTOR)


HARD_SWISH_TABLES: GraphPass[GraphModule] = GraphPass("hard-swish-tables", hard_swish_tables)
"""The pass; it reads the marks of `edgefold.quantize.scheme`."""
