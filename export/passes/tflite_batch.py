"""A TFLite model of one sample for any number of them.

The interpreter computes all shapes anew when an input is resized, from the operators' own constants. So what a file needs is a
first dimension that is declared open, and constants that hold no number of samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefold.errors import UnsupportedError
from edgefold.export.passes.tflite_model import TfliteModel, schema
from edgefold.export.passes.tflite_ranks import restore_ranks

# Operators whose result has a size that is held by a constant, or that count samples.
_PINNED = frozenset({"TRANSPOSE_CONV", "BROADCAST_TO", "FILL", "SHAPE", "PACK", "TILE"})
_BATCH = 1  # the bit of the first dimension in a mask
_STRIDED_SLICE_VERSION = 2  # for int8


def open_batch(model: TfliteModel) -> None:
    """Leave the first dimension of every computed tensor open, in place; the model is for one sample.

    Raises:
        UnsupportedError: an operator that needs a fixed number of samples.
    """
    restore_ranks(model)
    for operator in model.graph.operators:
        kind = model.kind(operator)
        if kind in _PINNED:
            name = model.tensor(int(operator.outputs[0])).name or b""
            place = name if isinstance(name, str) else name.decode(errors="replace")  # text where a pass before gave it
            raise UnsupportedError(
                f"the batch size cannot be left open in TFLite: operator {kind} at '{place}' holds a fixed shape; "
                "leave --dynamic-batch out, or write the op in another way"
            )
        if kind == "RESHAPE":
            _open_reshape(model, operator)
        elif kind == "STRIDED_SLICE":
            operator.builtinOptions.beginMask |= _BATCH
            operator.builtinOptions.endMask |= _BATCH
        elif kind == "SLICE":
            _open_slice(model, operator)
    for tensor in model.graph.tensors:
        if model.root.buffers[tensor.buffer].data is None and tensor.shape is not None and len(tensor.shape):
            tensor.shapeSignature = [-1, *(int(size) for size in tensor.shape[1:])]


def _open_reshape(model: TfliteModel, operator: Any) -> None:
    shape = [-1, *(int(size) for size in model.tensor(int(operator.outputs[0])).shape[1:])]
    operator.inputs = [operator.inputs[0], model.add_constant("shape", np.array(shape, np.int32))]
    if operator.builtinOptions is not None:
        operator.builtinOptions.newShape = shape


def _open_slice(model: TfliteModel, operator: Any) -> None:
    """XNNPACK takes no slice with an open size, but one by positions of which the first are masked."""
    begin = model.constant(int(operator.inputs[1]))
    if begin is None:
        return
    shape = model.tensor(int(operator.outputs[0])).shape
    ends = begin.ravel() + np.array([int(size) for size in shape], begin.dtype)
    operator.opcodeIndex = model.opcode("STRIDED_SLICE", _STRIDED_SLICE_VERSION)
    operator.builtinOptionsType = schema().BuiltinOptions.StridedSliceOptions
    operator.builtinOptions = schema().StridedSliceOptionsT()
    operator.builtinOptions.beginMask = operator.builtinOptions.endMask = _BATCH
    operator.inputs = [
        operator.inputs[0],
        *(
            model.add_constant(name, np.ascontiguousarray(values.ravel(), np.int32))
            for name, values in (("begin", begin), ("end", ends), ("strides", np.ones_like(ends)))
        ),
    ]
