"""Images whose channels become the last dimension while they are still float, for ExecuTorch.

XNNPACK computes channels last. Its delegate transposes the integers of an image, by a kernel for tiles of 16 × 16: for three
channels that took three times as long as to transpose the floats, and a tenth of the time of a small network.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ATEN = torch.ops.aten
_OPS = torch.ops.quantized_decomposed
_QUANTIZE: Final = _OPS.quantize_per_tensor.default
_DEQUANTIZE: Final = _OPS.dequantize_per_tensor.default
_CONVOLVE: Final = _ATEN.conv2d.default
FEW_CHANNELS: Final = 4  # a tile of 32-bit numbers on ARM; from 16 channels on, integers are faster everywhere


def float_transposes(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Move the channels of every float input of 2 to 4 channels that convolutions alone read, as integers; needs
    ``meta["val"]``."""
    graph = clone(graph)
    modified = False
    for image in [node for node in graph.graph.nodes if node.op == "placeholder" and _is_few_channels(node)]:
        convs = _convs(image)
        for conv in convs:
            _move_back(graph, conv)
        if convs:
            _move(graph, image)
            modified = True
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def _is_few_channels(node: Node) -> bool:
    value: Tensor = node.meta["val"]
    return value.ndim == 4 and 1 < value.shape[1] <= FEW_CHANNELS and value.is_contiguous()


def _convs(image: Node) -> list[Node]:
    """The convolutions that read an image as integers; none if anything else reads it, be it their padding."""
    readers = [image]
    for target in (_QUANTIZE, _DEQUANTIZE, _CONVOLVE):
        readers = [user for reader in readers for user in reader.users]
        if any(user.target is not target for user in readers):
            return []
    return readers


def _move(graph: GraphModule, image: Node) -> None:
    with graph.graph.inserting_after(image):
        moved = _copied(graph, image, torch.channels_last)
    image.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)


def _move_back(graph: GraphModule, conv: Node) -> None:
    """Moves the channels before a convolution to where they were, so that what follows it keeps its layout: the delegate drops
    this move together with its own before the convolution."""
    image = conv.args[0]
    assert isinstance(image, Node)
    with graph.graph.inserting_before(conv):
        back = _copied(graph, image, torch.contiguous_format)
        quantized = graph.graph.call_function(_QUANTIZE, (back, *image.args[1:]))
        result = graph.graph.call_function(_DEQUANTIZE, (quantized, *image.args[1:]))
    quantized.meta = result.meta = dict(image.meta)
    conv.args = (result, *conv.args[1:])


def _copied(graph: GraphModule, source: Node, layout: torch.memory_format) -> Node:
    copied = graph.graph.call_function(_ATEN._to_copy.default, (source,), {"memory_format": layout})
    copied.meta = dict(source.meta)
    return copied


FLOAT_TRANSPOSES: GraphPass[GraphModule] = GraphPass("float-transposes", float_transposes)
"""The pass; for a graph with quantize and dequantize nodes."""
