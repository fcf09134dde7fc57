"""The element type of a quantized ONNX model's ends, after `edgefold.export.passes.onnx_unsigned`.

uint8 ends are the integers inside, so the QuantizeLinear at an input and the DequantizeLinear at an output go; int8 ends
need one conversion that moves the zero point by 128.
"""

from __future__ import annotations

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
    if spec.dtype == "uint8":
        ir.convenience.replace_all_uses_with(quantize.outputs[0], value)
        model.graph.remove(quantize, safe=True)
    else:
        dequantize = new_node(quantize, DEQUANTIZE, [value, quantize.inputs[1], _zero_point(model, spec)])
        dequantize.outputs[0].dtype, dequantize.outputs[0].shape = ir.DataType.FLOAT, value.shape
        model.graph.insert_before(quantize, dequantize)
        quantize.replace_input_with(0, dequantize.outputs[0])
    value.dtype = _TYPES[spec.dtype]


def _integer_output(model: ir.Model, position: int, spec: TensorSpec) -> None:
    value = model.graph.outputs[position]
    dequantize = producer(value, DEQUANTIZE)
    if dequantize is None or dequantize.inputs[0] is None:
        raise RuntimeFailure(f"output '{spec.name}' has no DequantizeLinear of its own; please report this bug")
    value.name = f"{spec.name}_float"
    if spec.dtype == "uint8":
        # A node of its own keeps the name even where the integers are read by other nodes, too.
        last = new_node(dequantize, "Identity", [dequantize.inputs[0]])
    else:
        last = new_node(dequantize, QUANTIZE, [value, dequantize.inputs[1], _zero_point(model, spec)])
    last.outputs[0].name, last.outputs[0].dtype, last.outputs[0].shape = spec.name, _TYPES[spec.dtype], value.shape
    model.graph.append(last)
    model.graph.outputs[position] = last.outputs[0]


def _zero_point(model: ir.Model, spec: TensorSpec) -> ir.Value:
    return add_constant(model, "zero_end", np.array(spec.zero_point, np.dtype(spec.dtype)))
