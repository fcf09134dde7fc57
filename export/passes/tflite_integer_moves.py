"""16-bit integers for the operators that stand between marks (see `edgefold.export.passes.hold_moves`).

The converter wrote DEQUANTIZE, mark, operators in float, mark, QUANTIZE, with transpositions anywhere among them. Where all have
one scale and the operators only move values, they do the same on the integers, and the rest goes. Elsewhere only the marks go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.marks import marks_in, no_mark_left, remove_mark
from edgefold.export.passes.tflite_model import TfliteModel, type_name, type_number

# The operators that move values, and their first versions for 16-bit integers.
_VERSIONS: Final = {"CONCATENATION": 3, "GATHER": 4, "MAX_POOL_2D": 3, "PADV2": 2, "RESHAPE": 1, "TRANSPOSE": 4}
_LIMITS: Final = np.iinfo(np.int16)


@dataclass(frozen=True, slots=True)
class _Region:
    """What stands between DEQUANTIZE operators and one QUANTIZE operator."""

    begins: tuple[Any, ...]
    inside: tuple[Any, ...]
    end: Any


def integer_moves(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Make integers of everything between marks."""
    regions = [_region(model, operator) for operator in model.operators("QUANTIZE")]
    marks = marks_in(model)
    held = [region for region in regions if _is_held(model, region, marks)]
    for mark in marks:
        remove_mark(model, mark)
    for region in held:
        inside = tuple(operator for operator in region.inside if operator not in marks)
        _move(model, _Region(region.begins, inside, region.end))
    return model, bool(marks)


def _region(model: TfliteModel, quantize: Any) -> _Region:
    begins: list[Any] = []
    inside: list[Any] = []
    wanted = [int(quantize.inputs[0])]
    while wanted:
        operator = model.producer(wanted.pop())
        if operator is None or operator in inside or operator in begins:
            continue
        if model.kind(operator) == "DEQUANTIZE":
            begins.append(operator)
        else:
            inside.append(operator)
            wanted += [int(index) for index in operator.inputs if index >= 0]
    return _Region(tuple(begins), tuple(inside), quantize)


def _is_held(model: TfliteModel, region: _Region, marks: list[Any]) -> bool:
    """Whether a region has marks, and only moves values of one scale that nothing else reads."""
    moves = [operator for operator in region.inside if operator not in marks]
    if len(moves) == len(region.inside) or any(model.kind(operator) not in _VERSIONS for operator in moves):
        return False
    scales = {_scale(model, int(operator.inputs[0])) for operator in region.begins}
    readers = [reader for operator in region.inside for reader in model.consumers(int(operator.outputs[0]))]
    own = (*region.inside, region.end)
    return bool(moves) and scales == {_scale(model, int(region.end.outputs[0]))} and all(reader in own for reader in readers)


def _move(model: TfliteModel, region: _Region) -> None:
    """Turn a region without marks into integers, in place."""
    result = int(region.end.outputs[0])
    sources = {int(operator.outputs[0]): int(operator.inputs[0]) for operator in region.begins}
    for operator in region.inside:
        operator.inputs = [sources.get(int(index), int(index)) for index in operator.inputs]
        operator.inputs = [_integers(model, index, result) for index in operator.inputs]
        operator.opcodeIndex = model.opcode(model.kind(operator), _VERSIONS[model.kind(operator)])
        for index in operator.outputs:
            model.tensor(int(index)).type = type_number("int16")
            model.tensor(int(index)).quantization = model.tensor(result).quantization
    last = model.producer(int(region.end.inputs[0]))
    assert last is not None
    last.outputs = [result]
    model.graph.operators.remove(region.end)
    for operator in region.begins:
        if not model.consumers(int(operator.outputs[0])):
            model.graph.operators.remove(operator)


def _integers(model: TfliteModel, index: int, result: int) -> int:
    """The tensor itself, or for a constant of real numbers its integers in the scale of ``result``."""
    value = model.constant(index) if type_name(model.tensor(index).type) == "float32" else None
    if value is None:
        return index
    integers = np.clip(np.rint(value / _scale(model, result)), _LIMITS.min, _LIMITS.max).astype(np.int16)
    made = model.add_constant("", integers)
    model.tensor(made).name = model.tensor(index).name
    model.tensor(made).quantization = model.tensor(result).quantization
    return made


def _scale(model: TfliteModel, index: int) -> float:
    return float(model.tensor(index).quantization.scale[0])


INTEGER_MOVES: GraphPass[TfliteModel] = GraphPass("tflite-integer-moves", integer_moves, ensures=(no_mark_left,))
