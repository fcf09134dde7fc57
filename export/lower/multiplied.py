"""Depthwise convolutions of several outputs a channel (FastViT's downsampling, say), as several of one output a channel.

Runtimes have depthwise kernels of one output a channel only. With more, XNNPACK and ONNX Runtime compute a group convolution of
one channel a group, which leaves most of a vector idle: it takes 1.8 to 23 times as long (`benchmarks/rewrites.py`). With output
c = m i + j of channel i, the convolutions j = 0 … m - 1 read the same input,

    y = shuffle(cat(W[j::m] ⋆ x)),    shuffle: channel m i + j is number j M + i of the concat,

and the layers that read y take its channels in the order of the concat (`edgefold.export.lower.permute`). Each output is computed
as before, to the last bit in integers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgefold.export.lower.candidates import Options, options_of
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.rewrite import fused_clamp
from edgefold.export.plan import LoweredLayer
from edgefold.quantize.graph import add_buffer, constant_of
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

aten = torch.ops.aten

FEW: Final = 8  # channels of a convolution in floats that stays as it is


def split_multiplied(module: GraphModule) -> dict[Node, Options]:
    """Writes them so, in place; the layer that each of the new ones is a part of. They have no value in their ``meta`` yet."""
    found: dict[Node, Options] = {}
    for conv in [conv for conv in map(Conv.of, module.graph.nodes) if conv is not None and _goes(conv)]:
        layer = options_of(conv, constant_of(module, conv.weight))
        found |= dict.fromkeys(_split(module, conv.current()), layer)  # the one before it may have been replaced
    return found


def in_plan(layer: LoweredLayer, parts: int) -> LoweredLayer:
    """The plan's entry for a layer that is computed so."""
    return replace(
        layer,
        reason=f"as {parts} depthwise convolutions of its input: runtimes have no depthwise kernel for several outputs a channel",
    )


def _goes(conv: Conv) -> bool:
    count, channels = conv.out_channels // conv.in_channels, conv.in_channels
    if not conv.depthwise or count < 2:
        return False
    # A few groups of many outputs are as fast as they are.
    return count <= channels if WEIGHT_SCALE in conv.node.meta else 2 * count <= channels >= FEW


def _split(module: GraphModule, conv: Conv) -> list[Node]:
    """Replaces a convolution; the ones in its place."""
    node, channels = conv.node, conv.in_channels
    count = conv.out_channels // channels
    weight = constant_of(module, conv.weight)
    bias = None if conv.bias is None else constant_of(module, conv.bias)
    clamp = fused_clamp(node)
    name = str(conv.weight.target).replace(".", "_")
    kept = {key: value for key, value in node.meta.items() if key != "val"}
    origin: dict[str, Any] = {key: kept[key] for key in ("nn_module_stack", "stack_trace") if key in kept}
    result = clamp or node
    quantized = {Q: result.meta[Q]} if Q in result.meta else {}
    target = aten.conv1d.default if len(conv.kernel) == 1 else aten.conv2d.default
    order = np.arange(conv.out_channels).reshape(count, channels).T.ravel()  # channel m i + j is number j M + i
    parts: list[Node] = []
    pieces: list[Node] = []

    def call(op: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> Node:
        made = module.graph.call_function(op, arguments)
        made.meta = {**origin, **meta}
        return made

    with module.graph.inserting_before(node):
        for j in range(count):
            rows = slice(j, None, count)
            weights = add_buffer(module, f"{name}_of_{j}", weight[rows].contiguous())
            shift = None if bias is None else add_buffer(module, f"{name}_bias_of_{j}", bias[rows].contiguous())
            sizes = ([*conv.stride], [*conv.padding], [*conv.dilation], channels)
            piece = call(target, (conv.source, weights, shift, *sizes), kept)
            if WEIGHT_SCALE in kept:
                piece.meta[WEIGHT_SCALE] = kept[WEIGHT_SCALE][rows]
            parts.append(piece)
            if clamp is not None:
                piece = module.graph.call_function(clamp.target, (piece, *clamp.args[1:]), clamp.kwargs)  # type: ignore[arg-type]  # an op
                piece.meta = {**origin, **quantized}
            pieces.append(piece)
        joined = call(aten.cat.default, (pieces, 1), quantized)
        index = add_buffer(module, f"{name}_order", torch.from_numpy(order))
        shuffled = call(aten.index_select.default, (joined, 1, index), quantized)
    result.replace_all_uses_with(shuffled)
    if clamp is not None:
        module.graph.erase_node(clamp)
    module.graph.erase_node(node)
    return parts
