"""Weights stored as float16 behind a DEQUANTIZE operator: half the size; delegates fold it, or compute in float16 if they can."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_number

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_DEQUANTIZE_VERSION = 3  # the first that reads float16
_LARGEST = float(np.finfo(np.float16).max)


def half_weights(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Narrow every weight and bias that float16 can hold."""
    half: dict[int, int] = {}  # float16 constant of each float32 tensor
    for operator in model.graph.operators:
        for index in _float_constants(model, operator):
            if index not in half:
                half[index] = _narrow(model, index)
    model.graph.operators[:0] = [dequantize(model, source, target, _DEQUANTIZE_VERSION) for target, source in half.items()]
    return model, bool(half)


def _float_constants(model: TfliteModel, operator: Any) -> list[int]:
    if model.kind(operator) not in WEIGHTED:
        return []
    found = []
    for index in operator.inputs:
        value = model.constant(index) if index >= 0 else None
        if value is not None and value.dtype == np.float32 and float(np.abs(value).max(initial=0)) <= _LARGEST:
            found.append(index)
    return found


def _narrow(model: TfliteModel, index: int) -> int:
    """A float16 copy of a constant; the tensor itself becomes a computed one."""
    tensor, value = model.tensor(index), model.constant(index)
    assert value is not None
    narrow = copy.copy(tensor)
    narrow.type = type_number("float16")
    narrow.buffer = model.add_buffer(value.astype(np.float16).tobytes())
    old, tensor.buffer = tensor.buffer, model.add_empty_buffer()
    model.release(old)
    return model.add_tensor(narrow)


def dequantize(model: TfliteModel, source: int, target: int, version: int) -> Any:
    """A DEQUANTIZE operator between two tensors; not inserted yet."""
    operator = schema().OperatorT()
    operator.opcodeIndex = model.opcode("DEQUANTIZE", version)
    operator.inputs, operator.outputs = [source], [target]
    operator.builtinOptionsType = schema().BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema().DequantizeOptionsT()
    return operator


def _none_left(model: TfliteModel) -> str | None:
    for operator in model.graph.operators:
        if _float_constants(model, operator):
            return f"a weight of {model.kind(operator)} is float32"
    return None


HALF_WEIGHTS: GraphPass[TfliteModel] = GraphPass("tflite-half-weights", half_weights, ensures=(_none_left,))
