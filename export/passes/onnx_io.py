"""The element type of a quantized ONNX model's ends, after `edgefold.export.passes.onnx_unsigned`.

uint8 ends are the integers inside, so the QuantizeLinear at an input and the DequantizeLinear at an output go. int8 ends differ
from them in the highest bit: a Cast, which keeps the bits, and a BitwiseXor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgefold.artifact import TensorSpec
from edgefold.errors import RuntimeFailure
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, QUANTIZE, add_constant, new_node, only_consumer, producer

_TYPES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


def convert_ends(model: ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Make the float ends whose specs have an integer type integers.

    Raises:
        RuntimeFailure: an end is not quantized in the graph.
    """
    for value, spec in zip(list(model.graph.inputs), inputs, strict=True):
        if spec.dtype in _TYPES and value.dtype == ir.DataType.FLOAT:
            _integer_input(model, value, spec)
    for position, spec in enumerate(outputs):
        if spec.dtype in _TYPES and model.graph.outputs[position].dtype == ir.DataType.FLOAT:
            _integer_output(model, position, spec)


def _integer_input(model: ir.Model, value: ir.Value, spec: TensorSpec) -> None:
    quantize = only_consumer(value, QUANTIZE)
    if quantize is None:
        raise RuntimeFailure(f"input '{spec.name}' has no QuantizeLinear of its own; please report this bug")
    value.dtype = _TYPES[spec.dtype]
    inner = value
    if spec.dtype == "int8":
        nodes = _flipped(model, quantize, value, ir.DataType.UINT8)
        model.graph.insert_before(quantize, nodes)
        inner = nodes[-1].outputs[0]
    ir.convenience.replace_all_uses_with(quantize.outputs[0], inner)
    model.graph.remove(quantize, safe=True)


def _integer_output(model: ir.Model, position: int, spec: TensorSpec) -> None:
    value = model.graph.outputs[position]
    dequantize = producer(value, DEQUANTIZE)
    if dequantize is None or dequantize.inputs[0] is None:
        raise RuntimeFailure(f"output '{spec.name}' has no DequantizeLinear of its own; please report this bug")
    value.name = f"{spec.name}_float"
    if spec.dtype == "uint8":
        # A node of its own keeps the name even where the integers are read by other nodes, too.
        nodes = [new_node(dequantize, "Identity", [dequantize.inputs[0]])]
    else:
        nodes = _flipped(model, dequantize, dequantize.inputs[0], ir.DataType.INT8)
    last = nodes[-1].outputs[0]
    last.name, last.dtype, last.shape = spec.name, _TYPES[spec.dtype], value.shape
    model.graph.extend(nodes)
    model.graph.outputs[position] = last


def _flipped(model: ir.Model, like: ir.Node, value: ir.Value, target: ir.DataType) -> list[ir.Node]:
    """The nodes that turn int8 into uint8 or back, the zero point moved by 128; not inserted yet."""
    bit = add_constant(model, "high_bit", np.array(128, np.uint8))
    source, nodes = value, []
    steps: list[tuple[str, list[ir.Value | None], dict[str, Any]]] = [
        ("Cast", [], {"to": int(target)}),
        ("BitwiseXor", [bit], {}),
    ]
    for kind, more, attributes in steps if target is ir.DataType.UINT8 else reversed(steps):
        node = new_node(like, kind, [source, *more], attributes)
        node.outputs[0].dtype, node.outputs[0].shape = (target if kind == "Cast" else ir.DataType.UINT8), value.shape
        nodes.append(node)
        source = node.outputs[0]
    return nodes
