"""Integer biases: a float bias of a conv or Gemm with integer input and weight becomes int32 behind a DequantizeLinear.

The scale is that of the accumulator, input scale times weight scale, one an output channel, and the zero point 0. Only then does
ONNX Runtime fuse the layer into QLinearConv or QGemm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, add_constant, affine_of, constant, is_weight, new_node, producer

_WEIGHTED = ("Conv", "Gemm")


def integer_bias(model: ir.Model) -> tuple[ir.Model, bool]:
    """Quantize every float bias whose layer has integer input and weight."""
    modified = False
    for node in list(model.graph):
        if node.op_type in _WEIGHTED and _float_bias(node) is not None:
            modified = _quantize(model, node) or modified
    return model, modified


def _quantize(model: ir.Model, node: ir.Node) -> bool:
    source, weight = (producer(node.inputs[index], DEQUANTIZE) for index in (0, 1))
    if source is None or weight is None or not is_weight(weight):
        return False
    input_affine, weight_affine = affine_of(source), affine_of(weight)
    bias = _float_bias(node)
    if input_affine is None or weight_affine is None or bias is None or not input_affine.per_tensor:
        return False
    scale = (np.broadcast_to(weight_affine.scale, bias.shape) * input_affine.scale).astype(np.float32)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias.astype(np.float64) / scale), limits.min, limits.max).astype(np.int32)
    name = node.inputs[2].name or "bias"  # type: ignore[union-attr]  # _float_bias found it
    inputs = [
        add_constant(model, f"{name}_i32", integers),
        add_constant(model, f"{name}_scale", scale),
    ]
    dequantize = new_node(node, DEQUANTIZE, list(inputs), {"axis": 0})
    dequantize.outputs[0].dtype, dequantize.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(bias.shape)
    model.graph.insert_before(node, dequantize)
    node.replace_input_with(2, dequantize.outputs[0])
    return True


def _float_bias(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    return constant(node.inputs[2]) if len(node.inputs) > 2 else None


def _no_float_bias_left(model: ir.Model) -> str | None:
    for node in model.graph:
        if node.op_type in _WEIGHTED and _float_bias(node) is not None:
            sides = (producer(node.inputs[index], DEQUANTIZE) for index in (0, 1))
            if all(side is not None for side in sides):
                return f"bias of '{node.name}' is float"
    return None


INTEGER_BIAS: GraphPass[ir.Model] = GraphPass("onnx-integer-bias", integer_bias, ensures=(_no_float_bias_left,))
