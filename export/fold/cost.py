"""Multiply-accumulates of ops and of kernels: the measure by which folding must never make a layer dearer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor
from torch._ops import OpOverload

from edgefold.export.plan import KernelMap

CONVOLUTIONS: Final = frozenset(
    {"convolution", "conv1d", "conv2d", "conv3d", "linear", "matmul", "einsum", "mm", "bmm", "addmm", "baddbmm"}
)
"""Ops that multiply by a weight."""


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
        case "mm" | "bmm" | "mv" | "dot":
            return int(args[0].numel() * (args[1].shape[-1] if args[1].ndim > 1 else 1))
        case "addmm" | "baddbmm" | "addmv":
            return int(args[1].numel() * (args[2].shape[-1] if args[2].ndim > 1 else 1))
        case "mul" | "mul_" | "div" | "div_" | "native_batch_norm" | "_native_batch_norm_legit_no_training" | "addcmul":
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
