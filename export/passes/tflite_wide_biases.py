"""64-bit biases for operators with 16-bit activations.

The converter writes 32 bits, with which kernels also add the products in 32 bits: 16-bit activations times 8-bit weights overflow
them after a few hundred. With a bias of 64 bits they add in 64; so an operator without a bias gets one of zeros.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_name

# Versions with 16-bit activations that tflite-runtime 2.14 knows.
_VERSIONS: Final = {"CONV_2D": 6, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7}


def wide_biases(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Give every convolution and linear layer on 16-bit integers a bias of 64 bits."""
    found = [operator for operator in model.graph.operators if _is_narrow(model, operator)]
    for operator in found:
        kind = model.kind(operator)
        activation, weight, *rest = (int(index) for index in operator.inputs)
        operator.inputs = [activation, weight, _widened(model, activation, weight, kind, rest[0] if rest else -1)]
        operator.opcodeIndex = model.opcode(kind, _VERSIONS[kind])
        if hasattr(operator.builtinOptions, "quantizedBiasType"):
            operator.builtinOptions.quantizedBiasType = 0  # as it was before there was a choice: 64 bits
    model.drop_unused_opcodes()  # a runtime refuses a file that lists a version it lacks
    return model, bool(found)


def _widened(model: TfliteModel, activation: int, weight: int, kind: str, bias: int) -> int:
    filters = model.tensor(weight)
    value = model.constant(bias) if bias >= 0 else None
    channels = int(filters.shape[-1 if kind == "DEPTHWISE_CONV_2D" else 0])
    wide = np.zeros(channels, np.int64) if value is None else value.astype(np.int64)
    made = model.add_constant("bias", wide)
    model.tensor(made).name = filters.name if bias < 0 else model.tensor(bias).name
    quantization = schema().QuantizationParametersT()
    step = np.float32(model.tensor(activation).quantization.scale[0])
    quantization.scale = [float(step * np.float32(scale)) for scale in filters.quantization.scale]
    quantization.zeroPoint = [0] * len(quantization.scale)
    model.tensor(made).quantization = quantization if bias < 0 else model.tensor(bias).quantization
    return made


def _is_narrow(model: TfliteModel, operator: Any) -> bool:
    if model.kind(operator) not in _VERSIONS or type_name(model.tensor(int(operator.inputs[0])).type) != "int16":
        return False
    bias = int(operator.inputs[2]) if len(operator.inputs) > 2 else -1
    return bias < 0 or type_name(model.tensor(bias).type) != "int64"


def _none_left(model: TfliteModel) -> str | None:
    narrow = [model.kind(operator) for operator in model.graph.operators if _is_narrow(model, operator)]
    return f"a {narrow[0]} adds in 32 bits" if narrow else None


WIDE_BIASES: GraphPass[TfliteModel] = GraphPass("tflite-wide-biases", wide_biases, ensures=(_none_left,))
