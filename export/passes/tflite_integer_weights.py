"""Int8 weights, with a scale for each output channel, in operators whose activations are float32.

The converter is given weights that lie on their grids of integers already; here each is found again by its values and becomes the
integers themselves, without rounding anything anew. Read by an operator as they are, they make it quantize its activations at run
time (the hybrid kernels); behind a DEQUANTIZE, the operator computes in float.

A hybrid linear layer becomes a convolution over one pixel. FULLY_CONNECTED knows a scale for each channel from version 12 on, and
runtimes before that (tflite-runtime 2.14) compute it, too: wrongly, without a word.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.errors import UnsupportedError
from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_half_weights import WEIGHTED, dequantize
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_number
from edgefold.quantize.weights import RoundedWeight

# The first versions with int8 weights and a scale for each channel; of DEQUANTIZE the same.
_HYBRID_VERSIONS = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6}
_DEQUANTIZE_VERSION = 5


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight in the order in which the file holds it; ``axis`` is that of the output channels."""

    name: str
    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int


def integer_weights(weights: Sequence[RoundedWeight], *, widened: bool) -> GraphPass[TfliteModel]:
    """The pass that stores the weights as integers; ``widened`` puts a DEQUANTIZE before the operators that read them."""

    def run(model: TfliteModel) -> tuple[TfliteModel, bool]:
        wanted = dict(entry for weight in weights for entry in _orders(weight))
        found: dict[int, _Stored] = {}
        for operator in model.graph.operators:
            if model.kind(operator) in WEIGHTED:
                index = int(operator.inputs[1])
                value = model.constant(index)
                stored = found.get(index) or (None if value is None else wanted.get(value.tobytes()))
                if stored is not None:
                    found[index] = stored
                    if not widened:
                        _make_hybrid(model, operator)
        names = {stored.name for stored in found.values()}
        lost = [weight.name for weight in weights if weight.name not in names]
        if lost:
            raise UnsupportedError(
                f"the weight of layer '{lost[0]}' is not in the TFLite file as it was rounded, because the converter merged it "
                "with other numbers; leave the layer in float with --exclude"
            )
        for index, stored in found.items():
            _store(model, index, stored, widened=widened)
        if not widened:
            for operator in model.operators("FULLY_CONNECTED"):
                if int(operator.inputs[1]) in found:
                    _over_one_pixel(model, operator)
            model.drop_unused_opcodes()
        return model, bool(found)

    return GraphPass("tflite-integer-weights", run)


def _orders(weight: RoundedWeight) -> list[tuple[bytes, _Stored]]:
    """The orders in which a file may hold a weight (N, M, *kernel) or (N, M), by the bytes of its real values.

    The weight (M, N, *kernel) of a transposed convolution is there as (N, *kernel, M); with stride 1 as that of an ordinary one,
    whose taps have the opposite order.
    """
    integers, values = weight.integers.movedim(weight.axis, 0), weight.values().movedim(weight.axis, 0)
    last, kernel = integers.ndim - 1, range(2, integers.ndim)
    orders = [((0, *kernel, 1), 0)]
    if integers.ndim > 2 and integers.shape[1] == 1:  # depthwise: (1, *kernel, N)
        orders.append(((1, *kernel, 0), last))
    found = []
    for flipped in ((), tuple(kernel)) if weight.axis else ((),):
        for order, axis in orders:
            numbers, real = (tensor.flip(flipped).permute(order).contiguous().numpy() for tensor in (integers, values))
            found.append((real.tobytes(), _Stored(weight.name, numbers, weight.scale.numpy(), axis)))
    return found


def _store(model: TfliteModel, index: int, stored: _Stored, *, widened: bool) -> None:
    tensor = model.tensor(index)
    old = tensor.buffer
    narrow = copy.copy(tensor) if widened else tensor
    narrow.type = type_number("int8")
    narrow.buffer = model.add_buffer(stored.integers.tobytes())
    quantization = schema().QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = stored.scale.tolist(), [0] * len(stored.scale)
    quantization.quantizedDimension = 0 if stored.axis == 0 else len(tensor.shape) - 1
    narrow.quantization = quantization
    if widened:
        tensor.buffer = model.add_empty_buffer()
        model.graph.operators.insert(0, dequantize(model, model.add_tensor(narrow), index, _DEQUANTIZE_VERSION))
    model.release(old)


def _make_hybrid(model: TfliteModel, operator: Any) -> None:
    kind = model.kind(operator)
    if kind in _HYBRID_VERSIONS:
        operator.opcodeIndex = model.opcode(kind, _HYBRID_VERSIONS[kind])


def _over_one_pixel(model: TfliteModel, operator: Any) -> None:
    """Makes a FULLY_CONNECTED a CONV_2D over images (rows, 1, 1, M), with weights (N, 1, 1, M)."""
    source, weight, output = operator.inputs[0], model.tensor(operator.inputs[1]), operator.outputs[0]
    outputs, inputs = int(weight.shape[0]), int(weight.shape[-1])
    weight.shape = [outputs, 1, 1, inputs]
    rows = math.prod(int(size) for size in model.tensor(output).shape[:-1])
    signature = model.tensor(source).shapeSignature
    fixed = signature is None or min(int(size) for size in signature) >= 0
    image, result = (_image_like(model, index, rows, size, fixed) for index, size in ((source, inputs), (output, outputs)))
    model.insert_reshape(operator, source, image)
    model.insert_reshape(operator, result, output, after=True)
    old, options = operator.builtinOptions, schema().Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema().Padding.VALID, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = old.fusedActivationFunction
    operator.builtinOptions, operator.builtinOptionsType = options, schema().BuiltinOptions.Conv2DOptions
    operator.inputs, operator.outputs = [image, *operator.inputs[1:]], [result]
    operator.opcodeIndex = model.opcode("CONV_2D", _HYBRID_VERSIONS["CONV_2D"])


def _image_like(model: TfliteModel, index: int, rows: int, channels: int, fixed: bool) -> int:
    """A new tensor (rows, 1, 1, channels) with the type of another; of any number of rows where that is not ``fixed``."""
    made = model.tensor_like(index, [rows, 1, 1, channels])
    if not fixed:
        model.tensor(made).shapeSignature = [-1, 1, 1, channels]
    return made
