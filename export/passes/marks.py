"""Marks that keep ops apart in the LiteRT converter, so that it leaves them alone, and that go again in the file it wrote.

The converter makes an integer operator of an op between dequantize and quantize nodes, whether or not that is wanted. A mark is a
floor, an op for which the converter has no integer form and which it takes into any layout, known by the name of its module.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.tflite_model import TfliteModel

_NAME: Final = "edgefold-mark"
_FLOOR: Final = torch.ops.aten.floor.default


def add_mark(graph: GraphModule, source: Node) -> Node:
    """A mark that reads ``source``, at the graph's insertion point."""
    mark = graph.graph.call_function(_FLOOR, (source,))
    mark.meta = {**source.meta, "nn_module_stack": {"path": ("", _NAME)}}
    return mark


def is_mark(node: Node) -> bool:
    """Whether a node is a mark, and no floor of the network."""
    return node.target is _FLOOR and node.meta.get("nn_module_stack") == {"path": ("", _NAME)}


def marks_in(model: TfliteModel) -> list[Any]:
    """The operators that the converter made of marks."""
    return [
        operator
        for operator in model.operators("FLOOR")
        if _NAME.encode() in (model.tensor(int(operator.outputs[0])).name or b"")
    ]


def remove_mark(model: TfliteModel, mark: Any) -> None:
    """Let what reads a mark read what the mark reads."""
    source, result = int(mark.inputs[0]), int(mark.outputs[0])
    for reader in model.consumers(result):
        reader.inputs = [source if index == result else index for index in reader.inputs]
    model.graph.operators.remove(mark)


def drop_marks(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Remove all marks."""
    marks = marks_in(model)
    for mark in marks:
        remove_mark(model, mark)
    return model, bool(marks)


def no_mark_left(model: TfliteModel) -> str | None:
    """The condition on a model that is done."""
    return "a mark is left" if marks_in(model) else None
