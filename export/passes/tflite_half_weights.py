"""Weights stored as float16 behind a DEQUANTIZE operator: half the size; delegates fold it, or compute in float16 if they can."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_number

_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_DEQUANTIZE_VERSION = 3  # the first that reads float16
_LARGEST = float(np.finfo(np.float16).max)


def half_weights(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Narrow every weight and bias that float16 can hold."""
    half: dict[int, int] = {}  # float16 constant of each float32 tensor
    for operator in model.graph.operators:
        for index in _float_constants(model, operator):
            if index not in half:
                half[index] = _narrow(model, index)
    model.graph.operators[:0] = [_dequantize(model, source, target) for target, source in half.items()]
    return model, bool(half)


def _float_constants(model: TfliteModel, operator: Any) -> list[int]:
    if model.kind(operator) not in _WEIGHTED:
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
    # The old buffer may be shared; where it is not, it is written out empty.
    if sum(other.buffer == tensor.buffer for other in model.graph.tensors) == 1:
        model.root.buffers[tensor.buffer].data = None
    tensor.buffer = model.add_empty_buffer()
    return model.add_tensor(narrow)


def _dequantize(model: TfliteModel, source: int, target: int) -> Any:
    operator = schema().OperatorT()
    operator.opcodeIndex = model.opcode("DEQUANTIZE", _DEQUANTIZE_VERSION)
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
