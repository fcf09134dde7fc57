"""Padding before a convolution as part of it, for TFLite.

The converter writes zero padding that is no part of a convolution in torch's layout, between two transpositions where the values
around it are in TFLite's. Here each padding moves behind the transposition that follows it, with its sizes in that order; two
transpositions that undo each other go; and a padding that is what the convolution's own "SAME" would add becomes that.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel, schema

_CONVS: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})


def pads_in_convs(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Move, and take in, the padding of every convolution."""
    before = len(model.graph.operators), [model.kind(operator) for operator in model.graph.operators]
    for operator in [one for one in model.graph.operators if model.kind(one) in _CONVS]:
        _move_pad(model, operator)
        _take_in(model, operator)
    return model, before != (len(model.graph.operators), [model.kind(operator) for operator in model.graph.operators])


def _move_pad(model: TfliteModel, conv: Any) -> None:
    """Where a transposition of a padding is what a convolution reads, pads what is transposed."""
    turn = _only_producer(model, conv.inputs[0], "TRANSPOSE")
    pad = None if turn is None else _only_producer(model, turn.inputs[0], "PAD")
    if turn is None or pad is None:
        return
    order, edges = model.constant(turn.inputs[1]), model.constant(pad.inputs[1])
    if order is None or edges is None:
        return
    source, padded = pad.inputs[0], turn.outputs[0]
    first = model.producer(source)
    shape = [int(model.tensor(source).shape[axis]) for axis in order]
    if first is not None and model.kind(first) == "TRANSPOSE" and _is_undone(model.constant(first.inputs[1]), order):
        turned = first.inputs[0]
        model.graph.operators.remove(turn)
        if len(model.consumers(source)) == 1 and source not in model.graph.outputs:
            model.graph.operators.remove(first)
    else:
        turned = model.tensor_like(source, shape)
        turn.inputs, turn.outputs = [source, *turn.inputs[1:]], [turned]
        model.graph.operators.remove(pad)  # it follows the transposition now
        model.graph.operators.insert(_place(model, turn) + 1, pad)
    pad.inputs, pad.outputs = [turned, model.add_constant("", edges[order])], [padded]


def _is_undone(first: NDArray[Any] | None, second: NDArray[Any]) -> bool:
    return first is not None and len(first) == len(second) and bool((first[second] == np.arange(len(second))).all())


def _take_in(model: TfliteModel, conv: Any) -> None:
    """Lets a convolution that pads nothing itself add what a padding before it adds, if its "SAME" is that."""
    options = conv.builtinOptions
    pad = _only_producer(model, conv.inputs[0], "PAD")
    edges = None if pad is None else model.constant(pad.inputs[1])
    if pad is None or edges is None or options.padding != schema().Padding.VALID:
        return
    image, kernel = model.tensor(pad.inputs[0]).shape, model.tensor(conv.inputs[1]).shape
    result = model.tensor(conv.outputs[0]).shape
    strides, dilations = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    expected = np.zeros((4, 2), np.int64)
    for axis, stride, dilation in zip((1, 2), strides, dilations, strict=True):
        size, steps = int(image[axis]), math.ceil(int(image[axis]) / stride)
        if steps != int(result[axis]):
            return
        whole = max(0, (steps - 1) * stride + (int(kernel[axis]) - 1) * dilation + 1 - size)
        expected[axis] = whole // 2, whole - whole // 2
    if edges.shape == (4, 2) and (edges == expected).all():
        options.padding = schema().Padding.SAME
        conv.inputs = [pad.inputs[0], *conv.inputs[1:]]
        model.graph.operators.remove(pad)


def _only_producer(model: TfliteModel, index: int, kind: str) -> Any | None:
    """What writes a tensor that one operator alone reads, if it is of a kind."""
    producer = model.producer(index)
    if producer is None or model.kind(producer) != kind or len(model.consumers(index)) > 1 or index in model.graph.outputs:
        return None
    return producer


def _place(model: TfliteModel, operator: Any) -> int:
    return next(index for index, one in enumerate(model.graph.operators) if one is operator)


def _none_between(model: TfliteModel) -> str | None:
    for operator in model.operators("TRANSPOSE"):
        pad = _only_producer(model, operator.inputs[0], "PAD")
        readers = [model.kind(reader) for reader in model.consumers(operator.outputs[0])]
        if pad is not None and len(readers) == 1 and readers[0] in _CONVS and model.constant(pad.inputs[1]) is not None:
            return "a padding before a convolution is transposed"
    return None


PADS_IN_CONVS: GraphPass[TfliteModel] = GraphPass("tflite-pads", pads_in_convs, ensures=(_none_between,))
