"""Convolutions of few channels read and write several columns of the image as channels.

Where a CPU multiplies tiles (AMX: 64 channels deep, 16 wide), XNNPACK's integer kernels take as long for a pixel of 3 channels
as for one of 64. The arithmetic is that of `edgefold.export.passes.columns`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgefold.export.passes.columns import Row
from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_name
from edgefold.export.passes.tflite_names import main_path

FEW: Final = 32  # channels, of which more fill enough of a tile
_DEPTH, _WIDTH = 64, 16  # of a tile: input channels and output channels
_ROW: Final = 2000  # what a column of the image takes beside its products, in products; fits four networks on a Xeon with AMX


@dataclass(frozen=True, slots=True)
class _Site:
    """A convolution that gains: its weight (N, kh, kw, C), what pads its image, the image, and ``q`` outputs for a group."""

    operator: Any
    pad: Any | None
    source: int
    weight: NDArray[np.int8]
    row: Row
    top: int  # rows of padding
    q: int


def columns_as_channels(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Rewrite every 8-bit convolution of few channels that gains by it."""
    changed = False
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        for operator in model.operators(kind):
            site = _site(model, operator, kind)
            if site is not None:
                _rewrite(model, site)
                changed = True
    if changed:
        _drop_reshapes(model)
        model.drop_unused_opcodes()
    return model, changed


def _site(model: TfliteModel, operator: Any, kind: str) -> _Site | None:
    options, result = operator.builtinOptions, model.tensor(operator.outputs[0])
    if type_name(result.type) != "int8" or len(operator.inputs) != 3 or min(operator.inputs) < 0:
        return None
    weight = model.constant(operator.inputs[1])
    if weight is None or weight.dtype != np.int8 or model.constant(operator.inputs[2]) is None:
        return None
    if kind == "DEPTHWISE_CONV_2D":
        weight = weight.transpose(3, 1, 2, 0)  # (1, kh, kw, N), of one input channel
    pad = _pad_of(model, operator)
    source = operator.inputs[0] if pad is None else pad.inputs[0]
    batch, height, width, channels = (int(size) for size in model.tensor(source).shape)
    if channels != weight.shape[3] or channels > FEW or batch != 1:
        return None  # channels of groups, for one
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return None
    top, left = _padding(model, operator, pad, (height, width), weight.shape[1:3])
    row = Row(channels, weight.shape[0], weight.shape[2], int(options.strideW), left, width)
    q = row.best(_cost) if int(result.shape[2]) * row.stride == width else None
    return None if q is None else _Site(operator, pad, source, weight, row, top, q)


def _rewrite(model: TfliteModel, site: _Site) -> None:
    operator, row, group = site.operator, site.row, site.row.stride * site.q
    height, rows = int(model.tensor(site.source).shape[1]), int(model.tensor(operator.outputs[0]).shape[1])
    image = model.tensor_like(site.source, [1, height, row.width // group, group * row.channels])
    model.insert_reshape(operator if site.pad is None else site.pad, site.source, image)
    needed = (rows - 1) * int(operator.builtinOptions.strideH) + site.weight.shape[1]
    taps = row.taps(site.q)
    edges = [[0, 0], [site.top, max(0, needed - height - site.top)], [-taps[0], max(0, taps[-1])], [0, 0]]
    if np.any(edges):
        sides = [size + sum(edge) for size, edge in zip(model.tensor(image).shape, edges, strict=True)]
        padded = model.tensor_like(image, sides)
        model.insert(operator, "PAD", [image, model.add_constant("", np.array(edges, np.int32))], padded, version=2)
        image = padded
    if site.pad is not None:
        model.graph.operators.remove(site.pad)
    bias = model.constant(operator.inputs[2])
    assert bias is not None
    parameters = [
        _parameter(model, operator.inputs[1], row.weight(site.weight, site.q), site.q),
        _parameter(model, operator.inputs[2], np.tile(bias, site.q), site.q),
    ]
    old, output = [*operator.inputs[1:], *(site.pad.inputs[1:] if site.pad is not None else ())], operator.outputs[0]
    if site.q > 1:
        output = model.tensor_like(output, [1, rows, row.width // group, site.q * row.outputs])
        result = model.tensor(operator.outputs[0])
        result.name = f"{main_path((result.name or b'').decode())}/columns".encode()
        model.insert_reshape(operator, output, operator.outputs[0], after=True)
    _become_conv(model, operator, [image, *parameters], output)
    for index in old:
        _empty(model, index)


def _pad_of(model: TfliteModel, operator: Any) -> Any | None:
    """The operator that pads the image for this convolution alone."""
    pad = model.producer(operator.inputs[0])
    if pad is None or model.kind(pad) != "PAD" or len(model.consumers(operator.inputs[0])) > 1:
        return None
    edges = model.constant(pad.inputs[1])
    return pad if edges is not None and edges.shape == (4, 2) and not edges[[0, 3]].any() else None


def _padding(
    model: TfliteModel, operator: Any, pad: Any | None, size: tuple[int, int], kernel: tuple[int, ...]
) -> tuple[int, int]:
    """Rows above and columns to the left that are added to an image of ``size``."""
    options = operator.builtinOptions
    edges = np.zeros((4, 2), np.int64) if pad is None else model.constant(pad.inputs[1])
    assert edges is not None
    found = []
    for axis, side, taps, stride in zip((1, 2), size, kernel, (options.strideH, options.strideW), strict=True):
        before = int(edges[axis, 0])
        if options.padding == schema().Padding.SAME:
            whole = side + int(edges[axis].sum())
            before += max(0, (math.ceil(whole / stride) - 1) * stride + taps - whole) // 2
        found.append(before)
    return found[0], found[1]


def _cost(row: Row) -> int:
    depth, width = -(-row.channels // _DEPTH) * _DEPTH, -(-row.outputs // _WIDTH) * _WIDTH
    return row.width // row.stride * (_ROW + row.kernel * depth * width)


def _become_conv(model: TfliteModel, operator: Any, inputs: list[int], output: int) -> None:
    old, options = operator.builtinOptions, schema().Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema().Padding.VALID, old.strideH, 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = old.fusedActivationFunction
    operator.builtinOptions, operator.builtinOptionsType = options, schema().BuiltinOptions.Conv2DOptions
    operator.inputs, operator.outputs = inputs, [output]
    operator.opcodeIndex = model.opcode("CONV_2D", 3)  # the first version for int8 with a scale a channel


def _parameter(model: TfliteModel, index: int, value: NDArray[Any], times: int) -> int:
    """A new constant in the place of another, whose channels it has ``times`` times along its first dimension."""
    made, old = model.add_constant("", value), model.tensor(index)
    quantization = copy.copy(old.quantization)
    quantization.scale, quantization.zeroPoint = (
        np.tile(values, times) for values in (quantization.scale, quantization.zeroPoint)
    )
    quantization.quantizedDimension = 0
    model.tensor(made).quantization, model.tensor(made).name = quantization, old.name
    return made


def _empty(model: TfliteModel, index: int) -> None:
    """Takes its value from a constant that nothing reads any more: the file would hold it."""
    if not model.consumers(index):
        buffer, model.tensor(index).buffer = model.tensor(index).buffer, 0  # by the schema the empty one
        model.release(buffer)


def _drop_reshapes(model: TfliteModel) -> None:
    """Lets a reshape of a reshape read the first one's input, and removes those that nothing reads any more."""
    outputs = set(model.graph.outputs)
    for operator in model.operators("RESHAPE"):
        before = model.producer(operator.inputs[0])
        if before is not None and model.kind(before) == "RESHAPE":
            operator.inputs = [before.inputs[0], *operator.inputs[1:]]
    for operator in model.operators("RESHAPE"):
        if not model.consumers(operator.outputs[0]) and operator.outputs[0] not in outputs:
            model.graph.operators.remove(operator)


COLUMNS_AS_CHANNELS: GraphPass[TfliteModel] = GraphPass("tflite-columns-as-channels", columns_as_channels)
