"""Multiply-accumulates of ops and of kernels: the measure by which folding must never make a layer dearer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgefold.export.plan import KernelMap, Totals
from edgefold.quantize.graph import constant_of, is_constant

CONVOLUTIONS: Final = frozenset(
    {"convolution", "conv1d", "conv2d", "conv3d", "linear", "matmul", "einsum", "tensordot", "mm", "bmm", "addmm", "baddbmm"}
)
"""Ops that multiply by a weight."""

SCALES: Final = frozenset({"mul", "mul_", "multiply", "multiply_", "div", "div_", "addcmul", "addcmul_"})
"""Ops that multiply element by element: by a weight each, in a convolution that is written as shifts."""

SUMS: Final = frozenset({"add", "add_", "sub", "sub_", "addcmul", "addcmul_"})

_ONE_EACH: Final = SCALES | {"native_batch_norm", "_native_batch_norm_legit_no_training"}  # multiply-accumulates an element


def writes_out(scales: int, sums: int, reductions: int) -> bool:
    """Whether ops that only scale, add two values that depend on the input, or sum over dimensions may be a convolution.

    They are one, written out, where two products are added or one is summed. A scale alone is none, nor is a residual.
    """
    return (scales >= 2 and sums >= 1) or (scales >= 1 and reductions >= 1)


def macs_of(op: OpOverload, args: Sequence[Any], results: Sequence[Tensor]) -> int:
    """The multiply-accumulates of one op with these arguments and results; 0 for ops that only move or add."""
    name = op._opname
    if not results:
        return 0
    out = results[0]
    match name:
        case "convolution":
            if args[6]:  # transposed: each input value meets the kernels of its channel
                return int(args[0].numel() * math.prod(args[1].shape[1:]))
            return out.numel() * int(math.prod(args[1].shape[1:]))
        case "conv1d" | "conv2d" | "conv3d":
            return out.numel() * int(math.prod(args[1].shape[1:]))
        case "linear":
            return int(args[0].numel() * args[1].shape[0])
        case "matmul":
            return out.numel() * int(args[0].shape[-1])
        case "tensordot":
            return out.numel() * int(math.prod(args[0].shape[axis] for axis in args[2]))
        case "mm" | "bmm" | "mv" | "dot":
            return int(args[0].numel() * (args[1].shape[-1] if args[1].ndim > 1 else 1))
        case "addmm" | "baddbmm" | "addmv":
            return int(args[1].numel() * (args[2].shape[-1] if args[2].ndim > 1 else 1))
        case _ if name in _ONE_EACH:
            return out.numel()
        case "avg_pool2d" | "avg_pool1d":
            return out.numel() * int(math.prod(args[1]))
        case "_adaptive_avg_pool2d" | "mean" | "sum":
            return int(args[0].numel())
    return 0


def effective_macs(kernel_map: KernelMap, positions: int) -> int:
    """The multiply-accumulates of a sparse computation at ``positions`` output positions."""
    return effective_weights(kernel_map) * positions


def effective_weights(kernel_map: KernelMap) -> int:
    """The weights that a sparse computation reads: K x K for a full kernel, one for a centre tap."""
    return kernel_map.full * math.prod(kernel_map.kernel_size) + kernel_map.centre


def node_macs(node: Node) -> int:
    """The multiply-accumulates of one node for the whole batch; its values and those of its inputs are recorded."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return 0
    value = node.meta["val"]
    results = [one for one in (value if isinstance(value, list | tuple) else (value,)) if isinstance(one, Tensor)]
    return macs_of(node.target, map_arg(node.args, lambda one: one.meta.get("val")), results)


def graph_totals(module: GraphModule, element_bytes: Callable[[Node], int] = lambda constant: 4) -> Totals:
    """What a captured network has, every weight counted, zero or not; ``element_bytes`` of a constant's node.

    The first input's first dimension is the batch.
    """
    nodes = list(module.graph.nodes)
    batch = next((len(node.meta["val"]) for node in nodes if node.op == "placeholder"), 1)
    constants = {node.target: (node, constant_of(module, node)) for node in nodes if is_constant(node)}
    floats = [(node, value.numel()) for node, value in constants.values() if value.is_floating_point()]
    return Totals(
        nodes=sum(node.op == "call_function" and node.target is not operator.getitem for node in nodes),
        flops=2 * (sum(map(node_macs, nodes)) // batch),
        parameters=sum(count for _, count in floats),
        weight_bytes=sum(element_bytes(node) * count for node, count in floats),
    )
