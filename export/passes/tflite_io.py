"""The element type of a fully integer TFLite model's ends.

The converter makes int8 or int16 ends. Float ends get a QUANTIZE or DEQUANTIZE operator, uint8 ones a QUANTIZE operator that
moves the zero point by 128; the integers inside are the same in all three.
"""

from __future__ import annotations

import copy
from typing import Any

from edgefold.artifact import TensorSpec
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_name, type_number

# Operator versions whose kernels take such integers on the one side and float32 or uint8 on the other.
_VERSIONS = {"int8": {"QUANTIZE": 1, "DEQUANTIZE": 2}, "int16": {"QUANTIZE": 2, "DEQUANTIZE": 3}}


def convert_ends(model: TfliteModel, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Make the ends have the types of the specs; tensors that have them already stay."""
    graph = model.graph
    for position, spec in enumerate(inputs):
        inner = int(graph.inputs[position])
        if _differs(model, inner, spec):
            outer = _end(model, inner, spec)
            kind = "QUANTIZE"  # from float as well as from uint8
            graph.operators.insert(0, _operator(model, kind, outer, inner))
            graph.inputs[position] = outer
    for position, spec in enumerate(outputs):
        inner = int(graph.outputs[position])
        if _differs(model, inner, spec):
            outer = _end(model, inner, spec)
            kind = "DEQUANTIZE" if spec.dtype == "float32" else "QUANTIZE"
            graph.operators.append(_operator(model, kind, inner, outer))
            graph.outputs[position] = outer


def _differs(model: TfliteModel, index: int, spec: TensorSpec) -> bool:
    found = type_name(model.tensor(index).type)
    return found in _VERSIONS and spec.dtype != found


def _end(model: TfliteModel, inner: int, spec: TensorSpec) -> int:
    """A tensor of the shape of ``inner`` and the type of ``spec``; returns its index."""
    tensor = copy.copy(model.tensor(inner))
    tensor.name = spec.name
    tensor.type = type_number(spec.dtype)
    tensor.buffer = model.add_empty_buffer()
    tensor.quantization = None
    if spec.scale is not None and spec.zero_point is not None:
        tensor.quantization = schema().QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [spec.scale], [spec.zero_point]
    # Inside, the name of the end is taken from now on.
    model.tensor(inner).name = f"{spec.name}/{type_name(model.tensor(inner).type)}"
    return model.add_tensor(tensor)


def _operator(model: TfliteModel, kind: str, source: int, target: int) -> Any:
    operator = schema().OperatorT()
    types = (type_name(model.tensor(index).type) for index in (source, target))
    inner = next(name for name in types if name in _VERSIONS)
    operator.opcodeIndex = model.opcode(kind, _VERSIONS[inner][kind])
    operator.inputs, operator.outputs = [source], [target]
    names = schema().BuiltinOptions
    operator.builtinOptionsType = {"QUANTIZE": names.QuantizeOptions, "DEQUANTIZE": names.DequantizeOptions}[kind]
    operator.builtinOptions = {"QUANTIZE": schema().QuantizeOptionsT, "DEQUANTIZE": schema().DequantizeOptionsT}[kind]()
    return operator
