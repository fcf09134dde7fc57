"""What a converter writes for one sample, where an axis of size 1 may be left out or summed over, for any number of samples.

With one sample, (1, C) and (1, 1, 1, C) add to (1, H, W, C) alike, (H, C) stands for (1, H, C), and a mean over the samples is
none: converters write the shorter form. With N samples the first is (N, C), whose N meets W, and the second (N * H, C). Every
computed tensor is taken as k * N rows, the rows of a sample side by side, where k is its first size in a model for one sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefold.export.passes.tflite_model import TfliteModel, schema, type_name

# Operators that repeat their operands along axes of size 1, which are counted from the last one.
_BROADCAST = frozenset(
    {
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "FLOOR_DIV",
        "FLOOR_MOD",
        "POW",
        "MAXIMUM",
        "MINIMUM",
        "SQUARED_DIFFERENCE",
        "EQUAL",
        "NOT_EQUAL",
        "LESS",
        "LESS_EQUAL",
        "GREATER",
        "GREATER_EQUAL",
        "LOGICAL_AND",
        "LOGICAL_OR",
        "SELECT_V2",
        "BATCH_MATMUL",
    }
)
_REDUCTIONS = frozenset({"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"})
_INTEGER_PRODUCT_VERSION = 2


def restore_ranks(model: TfliteModel) -> None:
    """Make the first axis that of the samples wherever axes meet or are summed over, in place; the model is for one sample."""
    for operator in list(model.graph.operators):
        if model.kind(operator) == "FULLY_CONNECTED":
            _as_product(model, operator)
        if model.kind(operator) in _BROADCAST:
            _restore(model, operator)
        elif model.kind(operator) in _REDUCTIONS:
            _spare_samples(model, operator)


def _spare_samples(model: TfliteModel, operator: Any) -> None:
    """A reduction over the first axis becomes one over the rows of each sample."""
    (source, axes), (result,) = (int(index) for index in operator.inputs), (int(index) for index in operator.outputs)
    chosen, shape, made = model.constant(axes), _shape(model, source), _shape(model, result)
    positions = [] if chosen is None else sorted({int(axis) % len(shape) for axis in chosen.ravel()})
    if 0 not in positions or not made:
        return
    if shape[0] != 1:
        operator.builtinOptions.keepDims = False
        rows = model.tensor_like(source, (1, *shape))
        model.insert_reshape(operator, source, rows)
        source, positions, shape = rows, [0, *(axis + 1 for axis in positions)], (1, *shape)
    operator.inputs = [source, model.add_constant("axes", np.array(positions[1:], np.int32))]
    if operator.builtinOptions.keepDims:
        return
    full = model.tensor_like(result, tuple(size for axis, size in enumerate(shape) if axis not in positions[1:]))
    operator.outputs = [full]
    model.insert_reshape(operator, full, result, after=True)


def _as_product(model: TfliteModel, operator: Any) -> None:
    """A linear layer whose weight is computed, so that each sample has its own, is a product of matrices."""
    source, weight, *bias = (int(index) for index in operator.inputs)
    options, generated = operator.builtinOptions, schema()
    plain = options is None or options.fusedActivationFunction == generated.ActivationFunctionType.NONE
    if model.constant(weight) is not None or any(index >= 0 for index in bias) or not plain:
        return
    version = 1 if type_name(model.tensor(source).type) == "float32" else _INTEGER_PRODUCT_VERSION
    operator.opcodeIndex = model.opcode("BATCH_MATMUL", version)
    operator.builtinOptionsType = generated.BuiltinOptions.BatchMatMulOptions
    operator.builtinOptions = generated.BatchMatMulOptionsT()
    operator.builtinOptions.adjY = True
    rows = (*_shape(model, int(operator.outputs[0]))[:-1], _shape(model, source)[-1])
    if rows != _shape(model, source):  # such a layer takes all axes but the last for one
        flat = model.tensor_like(source, rows)
        model.insert_reshape(operator, source, flat)
        source = flat
    operator.inputs = [source, weight]


def _restore(model: TfliteModel, operator: Any) -> None:
    (result,) = (int(index) for index in operator.outputs)
    operands = [int(index) for index in operator.inputs]
    made = _shape(model, result)
    matrix = model.kind(operator) == "BATCH_MATMUL" and len(made) == 2
    if not made or (not matrix and all(_agrees(model, index, made) for index in operands)):
        return
    # Several rows a sample: an axis before them is that of the samples for as long as the operator runs.
    lifted = made if made[0] == 1 and not matrix else (1, *made)
    for place, index in enumerate(operands):
        shape = _shape(model, index)
        if model.constant(index) is None and len(shape) < len(lifted):
            full = model.tensor_like(index, (*(1,) * (len(lifted) - len(shape)), *shape))
            model.insert_reshape(operator, index, full)
            operator.inputs[place] = full
    if lifted != made:
        full = model.tensor_like(result, lifted)
        operator.outputs = [full]
        model.insert_reshape(operator, full, result, after=True)


def _agrees(model: TfliteModel, index: int, made: tuple[int, ...]) -> bool:
    """Whether an operand has the result's first axis; a constant is the same for all samples, so it has none or one of size 1."""
    shape = _shape(model, index)
    if model.constant(index) is None:
        return len(shape) == len(made) and shape[0] == made[0]
    return len(shape) < len(made) or shape[0] == 1


def _shape(model: TfliteModel, index: int) -> tuple[int, ...]:
    shape = model.tensor(index).shape
    return () if shape is None else tuple(int(size) for size in shape)
