"""TFLite: the operators of the flatbuffer, and which of them LiteRT's XNNPACK delegate takes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from edgefold.errors import ArtifactError
from edgefold.export.inspectors.ask import ask
from edgefold.export.inspectors.base import Kind, Op, Reading
from edgefold.export.passes.tflite_half_weights import WEIGHTED
from edgefold.export.passes.tflite_model import TfliteModel, load, type_name

_CONVS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
_HYBRID = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})  # take int8 weights with float activations
_DELEGATE = "DELEGATE"
_FLOATS = ("float32", "float16", "float64")

Node = tuple[str, list[int], list[int]]  # operator, inputs, outputs


def read(path: Path) -> Reading:
    """The operators, in order.

    Raises:
        ArtifactError: not a TFLite model, or one that LiteRT refuses.
    """
    nodes: list[Node] = [tuple(node) for node in json.loads(ask("tflite", path).splitlines()[-1])]
    try:
        model = load(path.read_bytes())
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise ArtifactError(f"'{path.name}' is not a sound TFLite model ({error}); fetch it again") from error
    delegates = [node for node in nodes if node[0] == _DELEGATE]
    taken = _taken(nodes, delegates)
    ops = tuple(_op(model, operator, position in taken) for position, operator in enumerate(model.graph.operators))
    return Reading(ops, len(delegates))


def _taken(nodes: list[Node], delegates: list[Node]) -> set[int]:
    """The positions of the nodes that a delegate replaces: those between its inputs and its outputs."""
    producers = {index: position for position, (kind, _, outputs) in enumerate(nodes) if kind != _DELEGATE for index in outputs}
    taken: set[int] = set()
    for _, inputs, outputs in delegates:
        wanted, known = list(outputs), set(inputs)
        while wanted:
            index = wanted.pop()
            position = producers.get(index)
            if index in known or position is None or position in taken:
                continue
            taken.add(position)
            wanted.extend(nodes[position][1])
    return taken


def _op(model: TfliteModel, operator: Any, accelerated: bool) -> Op:
    kind = model.kind(operator)
    output = int(operator.outputs[0])
    ends = {
        *model.graph.inputs,
        *model.graph.outputs,
        *(index for one in model.operators("TRANSPOSE") for index in _moved(model, one)),
    }
    return Op(
        kind,
        _kind(model, operator, kind),
        _module(model, operator),
        macs=_macs(model, operator, kind),
        dynamic=kind in _HYBRID and _type(model, operator.inputs[0]) in _FLOATS,
        is_conv=kind in _CONVS,
        accelerated=accelerated,
        at_end=output in ends or int(operator.inputs[0]) in ends,
        moved_bytes=sum(_bytes(model.tensor(int(index))) for index in (*operator.inputs, *operator.outputs) if index >= 0),
    )


def _module(model: TfliteModel, operator: Any) -> str:
    """The module that an op comes from: the name of its result, or of its weight where the result has an output's name."""
    output = int(operator.outputs[0])
    name = _text(model, output)
    if output not in model.graph.outputs or model.kind(operator) not in WEIGHTED:
        return name
    path, constant, _ = _text(model, int(operator.inputs[1])).partition("/const")
    return path if constant else name


def _text(model: TfliteModel, index: int) -> str:
    return (model.tensor(index).name or b"").decode(errors="replace")


def _moved(model: TfliteModel, operator: Any) -> list[int]:
    """The result of a transposition of a float input that is quantized next: a part of the file's end."""
    result = int(operator.outputs[0])
    at_input = operator.inputs[0] in model.graph.inputs and _type(model, result) in _FLOATS
    return [result] if at_input and {model.kind(reader) for reader in model.consumers(result)} == {"QUANTIZE"} else []


def _bytes(tensor: Any) -> int:
    """The size of a tensor; that of one of texts or without a shape is 0."""
    sizes = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
    shape = tensor.shape if tensor.shape is not None else ()
    return math.prod(max(1, int(size)) for size in shape) * sizes.get(type_name(tensor.type), 0)


def _kind(model: TfliteModel, operator: Any, kind: str) -> Kind:
    source, result = (_type(model, indices[0]) for indices in (operator.inputs, operator.outputs))
    if kind in ("QUANTIZE", "DEQUANTIZE") and (source in _FLOATS) != (result in _FLOATS):
        return Kind.CONVERSION  # DEQUANTIZE also widens float16 weights, and QUANTIZE also changes the scale of integers
    if kind == "TRANSPOSE" and _moved(model, operator):
        return Kind.MOVE
    if kind in _HYBRID and len(operator.inputs) > 1:
        # Dynamic range: float activations, integer weights and products.
        weight = model.tensor(int(operator.inputs[1]))
        return Kind.INTEGER if type_name(weight.type) not in _FLOATS and weight.buffer else Kind.FLOAT
    return Kind.FLOAT if result in _FLOATS else Kind.INTEGER


def _type(model: TfliteModel, index: int) -> str:
    return type_name(model.tensor(int(index)).type)


def _macs(model: TfliteModel, operator: Any, kind: str) -> int:
    shapes = [
        tuple(int(size) for size in model.tensor(int(index)).shape)
        for index in (*operator.inputs[:3], operator.outputs[0])
        if index >= 0
    ]
    if kind == "CONV_2D":  # weight (N, kh, kw, M)
        return math.prod(shapes[-1]) * math.prod(shapes[1][1:])
    if kind == "DEPTHWISE_CONV_2D":  # weight (1, kh, kw, N)
        return math.prod(shapes[-1]) * math.prod(shapes[1][1:3])
    if kind == "FULLY_CONNECTED":  # weight (N, M)
        return math.prod(shapes[-1]) * shapes[1][-1]
    if kind == "TRANSPOSE_CONV":  # inputs: output shape, weight (N, kh, kw, M), activation
        return math.prod(shapes[2]) * math.prod(shapes[1][:3])
    if kind == "BATCH_MATMUL":
        return math.prod(shapes[-1]) * shapes[0][-1]
    return 0
