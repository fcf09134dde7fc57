"""Values that go from one grid of 8-bit integers to another, for TFLite.

The LiteRT converter takes a dequantize node before a quantize node for nothing, whatever their scales are. A mark between them
keeps both, and in the file that it wrote they become one QUANTIZE from integers to integers.

A vector divided by its norm becomes one op of which it makes an integer one with any scale, and the runtime refuses it with all
but 1/128: a mark before the quantize node of a division leaves it in float, as it was meant.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.marks import add_mark, drop_marks, marks_in, no_mark_left
from edgefold.export.passes.tflite_model import TfliteModel

_OPS = torch.ops.quantized_decomposed
_QUANTIZE: Final = _OPS.quantize_per_tensor.default
_DEQUANTIZE: Final = _OPS.dequantize_per_tensor.default


def hold_grids(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Put a mark between each dequantize node, or division, and the quantize node that follows it."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_bare(node)]
    for node in found:
        source = node.args[0]
        assert isinstance(source, Node)
        with graph.graph.inserting_before(node):
            node.replace_input_with(source, add_mark(graph, source))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def requantize(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Let each QUANTIZE after a mark read the integers before it; remove all marks."""
    marks = marks_in(model)
    for mark in marks:
        source = model.producer(int(mark.inputs[0]))
        readers: list[Any] = model.consumers(int(mark.outputs[0]))
        if source is not None and model.kind(source) == "DEQUANTIZE" and all(model.kind(one) == "QUANTIZE" for one in readers):
            for reader in readers:
                reader.inputs = list(source.inputs)
            model.graph.operators.remove(mark)
            if not model.consumers(int(source.outputs[0])) and int(source.outputs[0]) not in model.graph.outputs:
                model.graph.operators.remove(source)
    drop_marks(model)
    return model, bool(marks)


def _is_bare(node: Node) -> bool:
    source = node.args[0] if node.target is _QUANTIZE else None
    return isinstance(source, Node) and source.target in (_DEQUANTIZE, torch.ops.aten.div.Tensor)


def _none_bare(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_bare(node)]
    return f"'{names[0]}' has no mark" if names else None


HOLD_GRIDS: GraphPass[GraphModule] = GraphPass("hold-grids", hold_grids, ensures=(_none_bare,))
REQUANTIZE: GraphPass[TfliteModel] = GraphPass("tflite-requantize", requantize, ensures=(no_mark_left,))
