"""Activations as uint8: the same real values, every integer and zero point 128 higher.

ONNX Runtime's x86 kernels take uint8 activations. From int8 ones it converts by itself, but only where a QuantizeLinear has
one consumer; around every residual branch that leaves a mixture of types in which convs and adds no longer fuse. On ARM both
types have kernels of the same speed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, QUANTIZE, Affine, add_constant, affine_of, is_weight


def unsigned_activations(model: ir.Model) -> tuple[ir.Model, bool]:
    """Move the zero point of every int8 activation up by 128; weights stay int8."""
    modified = False
    for node in model.graph:
        affine = _signed_activation(node)
        if affine is not None:
            zero_point = (affine.zero_point.astype(np.int16) + 128).astype(np.uint8)
            node.replace_input_with(2, add_constant(model, f"zero_{int(zero_point)}", zero_point))
            if node.op_type == QUANTIZE:
                node.outputs[0].dtype = ir.DataType.UINT8
            modified = True
    return model, modified


def _signed_activation(node: ir.Node) -> Affine | None:
    if node.op_type not in (QUANTIZE, DEQUANTIZE) or is_weight(node):
        return None
    affine = affine_of(node)
    return affine if affine is not None and affine.per_tensor and affine.zero_point.dtype == np.int8 else None


def _all_unsigned(model: ir.Model) -> str | None:
    names = [node.name for node in model.graph if _signed_activation(node) is not None]
    return f"'{names[0]}' is int8" if names else None


UNSIGNED_ACTIVATIONS: GraphPass[ir.Model] = GraphPass("onnx-unsigned-activations", unsigned_activations, ensures=(_all_unsigned,))
