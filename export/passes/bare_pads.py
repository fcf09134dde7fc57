"""Zero padding before a convolution without quantize and dequantize nodes of its own, for TFLite and ExecuTorch.

Zero lies on every grid, so that padding rounds nothing: what a layer reads is on the grid of the value that is padded. Between a
pair of its own the padding would be an op by itself. LiteRT's converter makes a convolution that pads unevenly of the two where
its formula for "same" allows it, and otherwise an integer PAD in the layout of the layer, without transpositions; ExecuTorch's
delegate takes integers only in a padding that has no pair of its own, and otherwise pads in float between two conversions.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone

_ATEN = torch.ops.aten
_OPS = torch.ops.quantized_decomposed
_QUANTIZE: Final = _OPS.quantize_per_tensor.default
_DEQUANTIZE: Final = _OPS.dequantize_per_tensor.default
_CONVS: Final = frozenset({_ATEN.conv1d.default, _ATEN.conv2d.default})
_PADS: Final = frozenset({_ATEN.constant_pad_nd.default, _ATEN.pad.default})


def bare_pads(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Let every convolution behind such a padding read the padding itself."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_paired(node)]
    for node in found:
        for quantize in list(node.users):
            for dequantize in list(quantize.users):
                dequantize.replace_all_uses_with(node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_paired(node: Node) -> bool:
    """Whether a node pads with zeros, between a dequantize node and pairs of the same grid that only convolutions read."""
    if node.target not in _PADS or not _pads_with_zeros(node):
        return False
    source = node.args[0]
    if not isinstance(source, Node) or source.target is not _DEQUANTIZE or not node.users:
        return False
    sides = node.args[1]
    assert isinstance(sides, list | tuple)
    if any(not isinstance(side, int) or side < 0 for side in sides):
        return False
    grid = source.args[1:]
    for quantize in node.users:
        if quantize.target is not _QUANTIZE or quantize.args[1:] != grid:
            return False
        for dequantize in quantize.users:
            if dequantize.target is not _DEQUANTIZE or dequantize.args[1:] != grid:
                return False
            if any(user.target not in _CONVS or user.args[0] is not dequantize for user in dequantize.users):
                return False
    return True


def _pads_with_zeros(node: Node) -> bool:
    options = [*node.args[2:], *node.kwargs.values()]  # a value, and of `aten.pad` a mode before it
    return all(option in (None, 0, "constant") for option in options)


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_paired(node)]
    return f"'{names[0]}' has a pair of its own" if names else None


BARE_PADS: GraphPass[GraphModule] = GraphPass("bare-pads", bare_pads, ensures=(_none_left,))
