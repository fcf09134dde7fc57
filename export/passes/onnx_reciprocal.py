"""Inputs are quantized by a product with the reciprocal of their scale, so that formats agree.

QuantizeLinear divides by the scale, while XNNPACK multiplies by its reciprocal, in ExecuTorch and in TFLite. The two products are
apart by a rounding of float32, and where they lie on both sides of a half, so are the integers: one of a few hundred thousand
pixels, which a deep network makes many. As a node of its own the product is the one that XNNPACK forms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import QUANTIZE, add_constant, affine_of, new_node


def multiply_inputs(model: ir.Model) -> tuple[ir.Model, bool]:
    """Give every QuantizeLinear of a graph input the scale 1, behind a multiplication."""
    found = _dividing(model)
    for node in found:
        affine = affine_of(node)
        assert affine is not None
        factor = add_constant(model, "reciprocal", np.float32(1) / affine.scale)
        product = new_node(node, "Mul", [node.inputs[0], factor])
        product.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.insert_before(node, product)
        node.replace_input_with(0, product.outputs[0])
        node.replace_input_with(1, add_constant(model, "one", np.array(1, np.float32)))
    return model, bool(found)


def _dividing(model: ir.Model) -> list[ir.Node]:
    nodes = [use.node for value in model.graph.inputs for use in value.uses() if use.node.op_type == QUANTIZE]
    return [node for node in nodes if affine_of(node) is not None]


def _none_left(model: ir.Model) -> str | None:
    names = [node.name for node in _dividing(model)]
    return f"'{names[0]}' divides" if names else None


MULTIPLY_INPUTS: GraphPass[ir.Model] = GraphPass("onnx-multiply-inputs", multiply_inputs, ensures=(_none_left,))
