"""Inputs that are quantized at run time: DynamicQuantizeLinear, ConvInteger or MatMulInteger, then scales and bias in float.

    y = (x_scale * w_scale) * integer_product(x_q - x_zero, w_q) + bias

Weights are those behind a DequantizeLinear with a constant: int8, symmetric, one scale an output channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, add_constant, affine_of, constant, is_weight, new_node, producer

_INTEGER = {"Conv": "ConvInteger", "Gemm": "MatMulInteger"}


def dynamic_inputs(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite every Conv and Gemm with an int8 weight."""
    chosen = [node for node in model.graph if _weight(node) is not None]
    for node in chosen:
        _rewrite(model, node)
    return model, bool(chosen)


def _weight(node: ir.Node) -> ir.Node | None:
    """The node that dequantizes the weight of a conv or linear layer."""
    if node.op_type not in _INTEGER:
        return None
    dequantize = producer(node.inputs[1], DEQUANTIZE)
    return dequantize if dequantize is not None and is_weight(dequantize) else None


def _rewrite(model: ir.Model, node: ir.Node) -> None:
    dequantize, source = _weight(node), node.inputs[0]
    assert dequantize is not None
    assert source is not None
    affine, weight = affine_of(dequantize), constant(dequantize.inputs[0])
    assert affine is not None
    assert weight is not None
    is_conv = node.op_type == "Conv"
    if not is_conv and node.attributes.get_int("transB", 0) == 1:
        weight = np.ascontiguousarray(weight.T)  # (M, N)
    per_channel = (-1, *[1] * (weight.ndim - 2)) if is_conv else (-1,)  # of the output (batch, N, ...)
    name = dequantize.inputs[0].name if dequantize.inputs[0] is not None else node.name
    attributes: dict[str, Any] = {key: value for key, value in node.attributes.items() if is_conv}
    quantize = new_node(node, "DynamicQuantizeLinear", [source], outputs=3)
    integers, scale, zero_point = quantize.outputs
    product = new_node(
        node,
        _INTEGER[node.op_type],
        [integers, add_constant(model, f"{name}_integers", weight), zero_point],
        attributes,
    )
    product.outputs[0].dtype = ir.DataType.INT32
    real = new_node(node, "Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    scales = new_node(node, "Mul", [scale, _constant(model, f"{name}_scale", affine.scale.reshape(per_channel))])
    scales.outputs[0].shape = None
    last = new_node(node, "Mul", [real.outputs[0], scales.outputs[0]])
    nodes = [quantize, product, real, scales, last]
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        last = new_node(node, "Add", [last.outputs[0], _constant(model, f"{name}_bias", bias.reshape(per_channel))])
        nodes.append(last)
    model.graph.insert_before(node, nodes)
    last.outputs[0].name, old = node.outputs[0].name, node.outputs[0]
    old.name = f"{old.name}_float"
    ir.convenience.replace_all_uses_with(old, last.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _constant(model: ir.Model, name: str, values: NDArray[Any]) -> ir.Value:
    return add_constant(model, name, np.ascontiguousarray(values, np.float32))


def _none_left(model: ir.Model) -> str | None:
    left = [node.name for node in model.graph if _weight(node) is not None]
    return f"'{left[0]}' computes in float" if left else None


DYNAMIC_INPUTS: GraphPass[ir.Model] = GraphPass("onnx-dynamic-inputs", dynamic_inputs, ensures=(_none_left,))
