"""Depthwise convolutions with many taps, by rows.

XNNPACK, which computes for LiteRT and ExecuTorch, has depthwise kernels of at most `MAX_TAPS` taps. A larger convolution runs
there as a group convolution of one channel a group, and takes many times as long (`benchmarks/depthwise_rows.py`). It is the sum

    W ⋆ x  =  Σ_r  W[r, k−1−r] ⋆ x  +  W[middle rows] ⋆ x

of convolutions of two rows each, that lie alike around the middle, and of the middle rows. Two rows are a kernel of height 2,
dilated by their distance, so that the padding of each part is symmetric and no copy of the input is padded.

In integers each part and each sum but the last is rounded to 8 bits, by scales that calibration finds (`row_branches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.artifact import Format, Precision
from edgefold.export.lower.conv import Conv
from edgefold.export.plan import LoweredLayer, NumericClass
from edgefold.quantize.graph import add_buffer, constant_of
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE, Q

aten = torch.ops.aten

MAX_TAPS: Final = 25
FORMATS: Final = frozenset({Format.TFLITE, Format.EXECUTORCH})
PRECISIONS: Final = frozenset({Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_FULL})

Rows = tuple[int, ...]


def row_parts(kernel: tuple[int, ...]) -> tuple[Rows, ...]:
    """The rows of each part of a depthwise kernel (height, width), the middle ones last; () where it stays whole."""
    if len(kernel) != 2 or kernel[0] * kernel[1] <= MAX_TAPS or 2 * kernel[1] > MAX_TAPS:
        return ()
    height, most = kernel[0], MAX_TAPS // kernel[1]
    middle = most if most % 2 == height % 2 else most - 1
    first = (height - middle) // 2
    pairs = tuple((row, height - 1 - row) for row in range(first))
    return (*pairs, tuple(range(first, first + middle)))


def row_branches(weight: Tensor, groups: int) -> dict[str, tuple[Tensor, bool]]:
    """The parts of a depthwise weight (N, 1, *kernel) and their sums, see `edgefold.quantize.calibrate.Branches`."""
    parts = row_parts(tuple(weight.shape[2:])) if weight.shape[1] == 1 and groups > 1 else ()
    found: dict[str, tuple[Tensor, bool]] = {}
    total = torch.zeros_like(weight, dtype=torch.bool)
    for place, rows in enumerate(parts):
        taps = torch.zeros_like(total)
        taps[:, :, list(rows)] = True
        total |= taps
        found[_part(place)] = taps, place == 0
        if 0 < place < len(parts) - 1:
            found[_sum(place)] = total.clone(), True
    return found


def by_rows(graph: GraphModule, format: Format, precision: Precision) -> dict[Node, int]:
    """Writes large depthwise convolutions by rows, in place; the number of parts of each that was replaced.

    Needs ``meta["val"]``.
    """
    if format not in FORMATS or precision not in PRECISIONS:
        return {}
    convs = [conv for conv in map(Conv.of, graph.graph.nodes) if conv is not None and _goes(conv)]
    for conv in convs:
        _rewrite(graph, conv.current())  # the one before it may have been replaced
    return {conv.node: len(row_parts(conv.kernel)) for conv in convs}


def in_plan(layer: LoweredLayer, parts: int) -> LoweredLayer:
    """The plan's entry for a layer that is computed by rows."""
    candidates = tuple(
        replace(one, numeric_class=NumericClass.BRANCHED) if one.numeric_class is NumericClass.FUSED else one
        for one in layer.candidates
    )
    reason = f"by rows, as {parts} convolutions: XNNPACK has no depthwise kernel for more than {MAX_TAPS} taps"
    return replace(layer, candidates=candidates, reason=reason)


def _goes(conv: Conv) -> bool:
    parts = row_parts(conv.kernel) if conv.depthwise and conv.in_channels == conv.out_channels else ()
    if not parts or any(conv.padding[0] < conv.dilation[0] * rows[0] for rows in parts):
        return False
    # A layer that stays float in a network of integers has no scales, and needs none.
    return WEIGHT_SCALE not in conv.node.meta or _part(0) in conv.node.meta.get(BRANCH_Q, {})


def _rewrite(graph: GraphModule, conv: Conv) -> None:
    node, parts = conv.node, row_parts(conv.kernel)
    branches: Mapping[str, Any] = node.meta.get(BRANCH_Q, {})
    quantized = {name: {Q: params} for name, params in branches.items()}
    weight = constant_of(graph, conv.weight)
    shared: dict[str, Any] = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    total: Node | None = None
    with graph.graph.inserting_before(node):
        for place, rows in enumerate(parts):
            step = rows[1] - rows[0] if len(rows) > 1 else 1
            name = f"{str(conv.weight.target).replace('.', '_')}_rows_{place}"
            arguments = (
                conv.source,
                add_buffer(graph, name, weight[:, :, list(rows)].contiguous()),
                conv.bias if place == 0 else None,
                list(conv.stride),
                [conv.padding[0] - conv.dilation[0] * rows[0], conv.padding[1]],
                [conv.dilation[0] * step, conv.dilation[1]],
                conv.groups,
            )
            part = graph.graph.call_function(aten.conv2d.default, arguments)
            part.meta = {**shared, **quantized.get(_part(place), {})}
            if WEIGHT_SCALE in node.meta:
                part.meta[WEIGHT_SCALE] = node.meta[WEIGHT_SCALE]
            if total is None:
                total = part
                continue
            total = graph.graph.call_function(aten.add.Tensor, (total, part))
            total.meta = {**shared, **quantized.get(_sum(place), {})}
    assert total is not None
    if Q in node.meta:
        total.meta[Q] = node.meta[Q]
    node.replace_all_uses_with(total)


def _part(place: int) -> str:
    return f"rows{place}"


def _sum(place: int) -> str:
    return f"sum{place}"
