"""Schemes that need no calibration: int8 weights, and activations that stay float or get their scales at run time.

Each output channel has one symmetric scale, its largest magnitude over 127. With activations of run time the products are
integers, so the scale is also one with which no 16-bit sum saturates (`edgefold.quantize.pairs`). Convolutions with one input
channel a group, and those over one dimension, then stay float: XNNPACK has no kernel for them, and they hold few weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.annotate import annotate
from edgefold.quantize.calibrate import ScaleTable
from edgefold.quantize.graph import add_buffer, constant_of, module_path
from edgefold.quantize.insert import quantize_weight, weight_values
from edgefold.quantize.pairs import weight_scale
from edgefold.quantize.scheme import WEIGHT_SCALE


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """The int8 weight (N, M / groups, *kernel) or (N, M) of one conv or linear layer, and its scales (N,)."""

    name: str
    integers: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """The real numbers that the integers stand for, float32."""
        return weight_values(self.integers, self.scale)


def round_weights(graph: GraphModule) -> tuple[RoundedWeight, ...]:
    """Puts the weights with scales on their grids, in place, as float32; returns them as integers."""
    found = []
    for node in list(graph.graph.nodes):
        if WEIGHT_SCALE in node.meta:
            scale: Tensor = node.meta[WEIGHT_SCALE]
            weight = RoundedWeight(module_path(node), quantize_weight(constant_of(graph, node.args[1]), scale), scale)
            with graph.graph.inserting_before(node):
                node.args = (node.args[0], add_buffer(graph, f"{node.name}_weight_rounded", weight.values()), *node.args[2:])
            found.append(weight)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    return tuple(found)


def weight_table(graph: GraphModule, keep_float: frozenset[str] = frozenset(), *, dynamic: bool) -> ScaleTable:
    """Scales of the weights alone.

    Args:
        graph: canonical ATen graph, float32.
        keep_float: convs and linears that keep their weights, by node name.
        dynamic: whether their inputs are quantized at run time.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    scales = {}
    for name in annotate(graph, keep_float).weighted:
        weight = constant_of(graph, nodes[name].args[1]).float()
        if dynamic and not has_dynamic_kernel(nodes[name], weight):
            continue
        scale = weight_scale(weight) if dynamic else weight.flatten(1).abs().amax(1) / 127
        scales[name] = torch.where(scale > 0, scale, torch.ones_like(scale))
    return ScaleTable({}, scales, observer="", dynamic=dynamic)


def has_dynamic_kernel(node: Node, weight: Tensor) -> bool:
    """Whether runtimes multiply inputs that are quantized at run time with a weight (N, M / groups, *kernel) or (N, M)."""
    if node.target is torch.ops.aten.linear.default:
        return True
    return node.target is torch.ops.aten.conv2d.default and weight.shape[1] > 1
