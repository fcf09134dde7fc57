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
_ANY_LAYOUT: Final = frozenset({_QUANTIZE, _OPS.dequantize_per_tensor.default, _ATEN.constant_pad_nd.default, _ATEN.pad.default})
_CHANNELS_LAST: Final = frozenset({_ATEN.conv2d.default})
FEW_CHANNELS: Final = 4  # a tile of 32-bit numbers on ARM; from 16 channels on, integers are faster everywhere


def float_transposes(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Move the channels of every float input of 2 to 4 channels that convolutions alone read, as integers; needs
    ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if node.op == "placeholder" and _is_few_channels(node) and _is_for_convs(node)]
    for node in found:
        with graph.graph.inserting_after(node):
            moved = graph.graph.call_function(_ATEN._to_copy.default, (node,), {"memory_format": torch.channels_last})
        moved.meta = {"val": node.meta["val"].contiguous(memory_format=torch.channels_last)}
        node.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_few_channels(node: Node) -> bool:
    value: Tensor = node.meta["val"]
    return value.ndim == 4 and 1 < value.shape[1] <= FEW_CHANNELS and value.is_contiguous()


def _is_for_convs(image: Node) -> bool:
    if any(user.target is not _QUANTIZE for user in image.users):
        return False
    values, found = [image], False
    while values:
        value = values.pop()
        for user in value.users:
            if user.target in _ANY_LAYOUT:
                values.append(user)
            elif user.target in _CHANNELS_LAST and user.args[0] is value:
                found = True
            else:
                return False
    return found


FLOAT_TRANSPOSES: GraphPass[GraphModule] = GraphPass("float-transposes", float_transposes)
"""The pass; for a graph with quantize and dequantize nodes."""
