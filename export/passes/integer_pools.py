"""Average pooling of 8-bit integers as a depthwise convolution: the runtimes' own is slow, or for floats only.

XNNPACK has none for integers, so that ExecuTorch computed it in floats between two conversions (it took longer than the
convolutions around it in the shortcuts of ResNet-D) and LiteRT in a plain loop; that of ONNX Runtime is a loop as well
(`benchmarks/rewrites.py`). The weights are all 1 / K^2: the integer 64 with a scale of 1 / (64 K^2), which for the usual 2x2 is a
power of two, so that the sums, and the ties when they are rounded, are exact. A window as large as the image is a mean, for
which there are integer kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.pool_windows import average_options
from edgefold.quantize.graph import add_buffer
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

_AVERAGE: Final = torch.ops.aten.avg_pool2d.default
_CONVOLVE: Final = torch.ops.aten.conv2d.default
_MEAN: Final = torch.ops.aten.mean.dim
_MANY_TAPS: Final = 25  # XNNPACK's depthwise kernels take no more
_INTEGER: Final = 64


@dataclass(frozen=True, slots=True)
class _Pool:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    divisor: int
    whole: bool


def integer_pools(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every quantized average pooling of (N, C, H, W) that divides by one number; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [(node, pool) for node in graph.graph.nodes if (pool := _pool(node)) is not None]
    for node, pool in found:
        if pool.whole:
            node.target, node.args = _MEAN, (node.args[0], [2, 3], True)
        else:
            _convolve(graph, node, pool)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _convolve(graph: GraphModule, node: Node, pool: _Pool) -> None:
    channels, share = node.meta["val"].shape[1], 1 / pool.divisor
    with graph.graph.inserting_before(node):
        weight = add_buffer(graph, f"{node.name}_share", torch.full((channels, 1, *pool.kernel), share))
    node.target = _CONVOLVE
    node.args = (node.args[0], weight, None, list(pool.stride), list(pool.padding), [1, 1], channels)
    node.meta[WEIGHT_SCALE] = torch.full((channels,), share / _INTEGER)


def _pool(node: Node) -> _Pool | None:
    source = node.args[0] if node.target is _AVERAGE and not node.kwargs else None
    if not isinstance(source, Node) or Q not in node.meta or source.meta["val"].ndim != 4:
        return None
    sides, steps, pads, ceil, counted, divisor = average_options(node)
    size, result = (tuple(value.meta["val"].shape[2:]) for value in (source, node))
    if ceil and any((s + 2 * p - k) // step + 1 != r for s, p, k, step, r in zip(size, pads, sides, steps, result, strict=True)):
        return None  # its last windows reach over the edge, and are divided by less
    if any(pads) and not counted and divisor is None:
        return None
    taps = math.prod(sides)
    whole = sides == size and not any(pads) and divisor in (None, taps)
    return _Pool(sides, steps, pads, divisor or taps, whole) if whole or taps <= _MANY_TAPS else None


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _pool(node) is not None]
    return f"average pooling '{names[0]}' is left" if names else None


INTEGER_POOLS: GraphPass[GraphModule] = GraphPass("integer-pools", integer_pools, ensures=(_none_left,))
