"""Hard-swish back in float, between integer layers.

`edgefold.export.passes.integer_activations` writes hard-swish as z · clip(z + 3a, 0, 6a) with a = 1 / √6, whose factor is in the
layer before it. XNNPACK has a float kernel for hard-swish, and on some CPUs two conversions and that kernel are faster than
an addition and a product of integers. Taking the factor out of the layer changes none of its integers: weights, bias, their
scales and the scale of z are √6 times as large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import clone
from edgefold.export.program import LoweredProgram
from edgefold.quantize.graph import add_buffer, constant_of, is_constant
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

aten = torch.ops.aten

_FACTOR: Final = math.sqrt(6)
_HALF: Final = 3 / _FACTOR  # of the gate, in z


@dataclass(frozen=True, slots=True)
class _Match:
    """z = max(layer, −3a), and product = z · clip(z + 3a, 0, 6a)."""

    layer: Node
    z: Node
    product: Node


def float_hard_swish(lowered: LoweredProgram) -> LoweredProgram:
    """The program with each hard-swish that follows an integer layer in float; itself where there is none."""
    graph = clone(lowered.program.graph)
    matches = [match for node in graph.graph.nodes if (match := _match(graph, node)) is not None]
    if not matches:
        return lowered
    for match in matches:
        _rewrite(graph, match)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    plan = replace(lowered.plan, float_hard_swish=True)
    return replace(lowered, program=replace(lowered.program, graph=GraphModule(graph, graph.graph)), plan=plan)


def _match(graph: GraphModule, node: Node) -> _Match | None:
    if node.target is not aten.mul.Tensor or Q not in node.meta:
        return None
    z, gate = node.args
    if not (isinstance(z, Node) and isinstance(gate, Node) and _is_clamp(gate, 0.0, 2 * _HALF) and _is_clamp(z, -_HALF, None)):
        return None
    total, layer = gate.args[0], z.args[0]
    assert isinstance(total, Node)
    assert isinstance(layer, Node)
    if total.target is not aten.add.Tensor or total.args[0] is not z or not _is_number(graph, total.args[1], _HALF):
        return None
    alone = set(z.users) == {total, node} and len(total.users) == len(gate.users) == len(layer.users) == 1
    return _Match(layer, z, node) if alone and WEIGHT_SCALE in layer.meta and Q in z.meta else None


def _is_clamp(node: Node, low: float, high: float | None) -> bool:
    if node.target is not aten.clamp.default:
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


def _rewrite(graph: GraphModule, match: _Match) -> None:
    layer, z = match.layer, match.z
    arguments = list(layer.args)
    with graph.graph.inserting_before(layer):
        for place, name in ((1, "weight"), (2, "bias")):
            old = arguments[place] if place < len(arguments) else None
            if isinstance(old, Node):
                value: Tensor = constant_of(graph, old) * _FACTOR
                arguments[place] = add_buffer(graph, f"{layer.name}_{name}_unscaled", value)
    layer.args = tuple(arguments)
    layer.meta[WEIGHT_SCALE] = layer.meta[WEIGHT_SCALE] * _FACTOR
    z.args = (layer, -3.0)
    z.meta[Q] = replace(z.meta[Q], scale=z.meta[Q].scale * _FACTOR)
    with graph.graph.inserting_before(match.product):
        swish = graph.graph.call_function(aten.hardswish.default, (z,))
    swish.meta = dict(match.product.meta)
    match.product.replace_all_uses_with(swish)
