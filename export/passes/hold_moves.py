"""Ops beside 16-bit integers that the LiteRT converter breaks on, kept apart so that it leaves them alone.

The converter makes an integer operator of an op between dequantize and quantize nodes. For 16 bits that is right for the ops that
`_is_taken` knows. It refuses to write some others although the runtime has kernels for them (concatenation, gather, padding with
a value, addition with a broadcast), and fails at ops that stay float. So each op that is not known is put between two marks here.
`edgefold.export.passes.tflite_integer_moves` makes integers of what the converter wrote between them if it only moves values, and
takes the marks out.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.marks import add_mark, is_mark
from edgefold.quantize.annotate import WEIGHTED

_ATEN = torch.ops.aten
_OPS = torch.ops.quantized_decomposed
_DEQUANTIZE: Final = frozenset({_OPS.dequantize_per_tensor.default, _OPS.dequantize_per_channel.default})
_POOLS: Final = frozenset({_ATEN.max_pool1d.default, _ATEN.max_pool2d.default})
_PADS: Final = frozenset({_ATEN.constant_pad_nd.default, _ATEN.pad.default})
_BINARY: Final = frozenset({_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor})
_TAKEN: Final = frozenset(
    {
        _ATEN.adaptive_avg_pool1d.default,
        _ATEN.adaptive_avg_pool2d.default,
        _ATEN.avg_pool2d.default,
        _ATEN.chunk.default,
        _ATEN.clamp_min.default,
        _ATEN.expand.default,
        _ATEN.flatten.using_ints,
        _ATEN.leaky_relu.default,
        _ATEN.mean.dim,
        _ATEN.permute.default,
        _ATEN.pixel_shuffle.default,
        _ATEN.prelu.default,
        _ATEN.relu.default,
        _ATEN.reshape.default,
        _ATEN.sigmoid.default,
        _ATEN.slice.Tensor,
        _ATEN.softmax.int,
        _ATEN.split.Tensor,
        _ATEN.split_with_sizes.default,
        _ATEN.squeeze.dim,
        _ATEN.squeeze.dims,
        _ATEN.tanh.default,
        _ATEN.transpose.int,
        _ATEN.unsqueeze.default,
        _ATEN.upsample_nearest2d.vec,
        _ATEN.view.default,
        _ATEN._softmax.default,
    }
)


def hold_moves(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Put marks around each op that the converter would break on; needs ``meta["val"]`` and quantize and dequantize nodes."""
    graph = clone(graph)
    held = [node for node in graph.graph.nodes if _is_held(node)]
    for node in held:
        with graph.graph.inserting_before(node):
            for source in node.all_input_nodes:
                if source.target in _DEQUANTIZE:
                    node.replace_input_with(source, add_mark(graph, source))
        if node.target not in WEIGHTED:  # which fuses with what follows
            with graph.graph.inserting_after(node):
                mark = add_mark(graph, node)
            node.replace_all_uses_with(mark, delete_user_cb=lambda user, keep=mark: user is not keep)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(held)


def _is_held(node: Node) -> bool:
    """Whether an op reads integers and is not one that the converter takes."""
    if node.op != "call_function" or str(node.target).startswith("quantized_decomposed") or is_mark(node):
        return False
    return any(source.target in _DEQUANTIZE for source in node.all_input_nodes) and not _is_taken(node)


def _is_taken(node: Node) -> bool:
    """Whether the converter makes an operator on 16-bit integers of an op that reads some."""
    if node.target in WEIGHTED or node.target in _BINARY:
        sources = [source for source in node.args[:2] if isinstance(source, Node) and source.target in _DEQUANTIZE]
        broadcast = node.target is _ATEN.add.Tensor and len({source.meta["val"].shape for source in sources}) > 1
        return len(sources) == 2 and not broadcast
    if node.target in _POOLS:
        padding = node.args[3] if len(node.args) > 3 else 0
        ceil = node.args[5] if len(node.args) > 5 else False
        return padding in (0, [0], [0, 0]) and not ceil
    if node.target in _PADS:
        values = [value for value in node.args[2:] if isinstance(value, int | float)]
        return not any(values)
    return node.target in _TAKEN


def _none_bare(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_held(node)]
    return f"'{names[0]}' has no marks" if names else None


HOLD_MOVES: GraphPass[GraphModule] = GraphPass("hold-moves", hold_moves, ensures=(_none_bare,))
