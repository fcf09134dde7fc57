"""Images whose channels become the last dimension while they are still float, for TFLite; see `float_transposes`."""

from __future__ import annotations

from typing import Any

from edgefold.export.passes.float_transposes import FEW_CHANNELS
from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel

_TO_LAST = [0, 2, 3, 1]


def float_transposes(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Let each float input of 2 to 4 channels be transposed before it is quantized, where nothing else reads its integers."""
    found = [one for one in model.operators("QUANTIZE") if _is_few_channels(model, one) and _is_transposed(model, one)]
    for quantize in found:
        _swap(model, quantize, model.consumers(quantize.outputs[0]))
    return model, bool(found)


def _is_few_channels(model: TfliteModel, quantize: Any) -> bool:
    image = model.tensor(quantize.inputs[0])
    return quantize.inputs[0] in model.graph.inputs and len(image.shape) == 4 and 1 < int(image.shape[1]) <= FEW_CHANNELS


def _is_transposed(model: TfliteModel, quantize: Any) -> bool:
    readers = model.consumers(quantize.outputs[0])
    results = {quantize.outputs[0], *(one.outputs[0] for one in readers)}
    return bool(readers) and all(_moves_last(model, one) for one in readers) and not results.intersection(model.graph.outputs)


def _moves_last(model: TfliteModel, operator: Any) -> bool:
    order = model.constant(operator.inputs[1]) if model.kind(operator) == "TRANSPOSE" else None
    return order is not None and order.tolist() == _TO_LAST


def _swap(model: TfliteModel, quantize: Any, transposes: list[Any]) -> None:
    first, *others = transposes
    image, result = quantize.inputs[0], first.outputs[0]
    moved = model.tensor_like(image, [int(size) for size in model.tensor(result).shape])
    model.tensor(moved).shapeSignature = model.tensor(result).shapeSignature
    first.inputs, first.outputs = [image, first.inputs[1]], [moved]
    quantize.inputs, quantize.outputs = [moved], [result]
    operators = model.graph.operators
    operators.remove(first)
    operators.insert(operators.index(quantize), first)
    for other in others:
        for reader in model.consumers(other.outputs[0]):
            reader.inputs = [result if index == other.outputs[0] else index for index in reader.inputs]
        operators.remove(other)


FLOAT_TRANSPOSES: GraphPass[TfliteModel] = GraphPass("tflite-float-transposes", float_transposes)
