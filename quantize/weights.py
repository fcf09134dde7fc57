"""Schemes that need no calibration: int8 weights, and activations that stay float or get their scales at run time.

Each output channel has one symmetric scale, its largest magnitude over 127. With activations of run time the products are
integers, so the scale is also one with which no 16-bit sum saturates (`edgefold.quantize.pairs`). Convolutions with one input
channel a group, transposed ones, and those over one dimension, then stay float: XNNPACK has no kernel for them, or they hold few
weights. Transposed convolutions in groups stay float always, since one channel of each group would share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.annotate import annotate
from edgefold.quantize.calibrate import ScaleTable
from edgefold.quantize.graph import TRANSPOSED, add_buffer, channel_axis, constant_of, groups_of, is_constant, module_path
from edgefold.quantize.insert import quantize_weight, weight_values
from edgefold.quantize.pairs import full_scale, weight_scale
from edgefold.quantize.scheme import WEIGHT_SCALE

_SCALINGS: Final = frozenset({torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor})


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """The int8 weight (N, M / groups, *kernel) or (N, M) of one conv or linear layer, and its scales (N,) along ``axis``.

    ``axis`` is 1, and the weight (M, N, *kernel), where the convolution is transposed.
    """

    name: str
    integers: Tensor
    scale: Tensor
    axis: int = 0

    def values(self) -> Tensor:
        """The real numbers that the integers stand for, float32."""
        return weight_values(self.integers, self.scale, self.axis)


def round_weights(graph: GraphModule) -> tuple[RoundedWeight, ...]:
    """Puts the weights with scales on their grids, in place, as float32; returns them as integers."""
    found = []
    for node in list(graph.graph.nodes):
        if WEIGHT_SCALE in node.meta:
            scale: Tensor = node.meta[WEIGHT_SCALE]
            axis = channel_axis(node)
            integers = quantize_weight(constant_of(graph, node.args[1]), scale, axis)
            weight = RoundedWeight(module_path(node), integers, scale, axis)
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
    # Calibration makes ordinary convolutions of transposed ones; where activations stay float, they are what they were.
    upward = () if dynamic else (name for name in nodes if name not in keep_float and _is_rounded_transposed(nodes[name]))
    for name in (*annotate(graph, keep_float).weighted, *upward):
        weight = constant_of(graph, nodes[name].args[1]).float()
        if dynamic and not has_dynamic_kernel(nodes[name], weight):
            continue
        scale = weight_scale(weight) if dynamic else full_scale(weight.movedim(channel_axis(nodes[name]), 0))
        scales[name] = torch.where(scale > 0, scale, torch.ones_like(scale))
    return ScaleTable({}, scales, observer="", dynamic=dynamic)


def _is_rounded_transposed(node: Node) -> bool:
    """Whether a node is a transposed convolution of one group with a constant weight, which no constant multiplies afterwards.

    The LiteRT converter would put that constant into the weight.
    """
    if node.target not in TRANSPOSED or not is_constant(node.args[1]) or groups_of(node) != 1:
        return False
    scalings = (user for user in node.users if user.target in _SCALINGS)
    return all(
        argument is node or (isinstance(argument, Node) and not is_constant(argument))
        for user in scalings
        for argument in user.args
    )


def has_dynamic_kernel(node: Node, weight: Tensor) -> bool:
    """Whether runtimes multiply inputs that are quantized at run time with a weight (N, M / groups, *kernel) or (N, M)."""
    if node.target is torch.ops.aten.linear.default:
        return True
    return node.target is torch.ops.aten.conv2d.default and weight.shape[1] > 1
