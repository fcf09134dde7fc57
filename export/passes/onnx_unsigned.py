"""Integers as uint8 where the kernels want it: the same real values, every integer and zero point 128 higher.

Activations: ONNX Runtime's x86 kernels take uint8 ones. From int8 it converts by itself, but only where a QuantizeLinear has one
consumer; around every residual branch that leaves a mixture of types in which convs and adds no longer fuse.

Weights: on x86 CPUs without VNNI the kernels for uint8 activations and int8 weights add two 16-bit products with saturation,
so that large values can give wrong sums (12 dB instead of 43 on the built-in network). They are 1.3 to 1.8 times as fast as
those for uint8 weights, which are exact. So weights stay int8 where no sum can saturate (see `edgefold.quantize.pairs`), and
become uint8 elsewhere. Depthwise weights stay int8 in any case: their kernels multiply in more bits.

CPUs with VNNI add four products in 32 bits: there int8 weights are exact, and almost 4 times as fast as uint8 ones. A file for
such a CPU keeps them; elsewhere ONNX Runtime makes them uint8 as it loads the file, if ``session.x64quantprecision`` is 1.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import torch

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, QUANTIZE, Affine, add_constant, affine_of, constant, is_weight
from edgefold.quantize.pairs import is_pair_safe

_SHIFT = 128


def unsigned(model: ir.Model, *, weights: bool = True) -> tuple[ir.Model, bool]:
    """Move the zero point of every int8 activation, and of every weight whose products can saturate, up by 128.

    Without ``weights`` they stay as they are.
    """
    modified = False
    for node in model.graph:
        affine = _signed(node) if weights or not _is_layer_weight(node) else None
        if affine is None:
            continue
        zero_point = _raised(affine.zero_point)
        name = f"zero_{int(zero_point)}" if affine.per_tensor else f"{node.name}_zero_point"
        node.replace_input_with(2, add_constant(model, name, zero_point))
        if is_weight(node):
            _raise_weight(model, node)
        elif node.op_type == QUANTIZE:
            node.outputs[0].dtype = ir.DataType.UINT8
        modified = True
    return model, modified


def can_saturate(model: ir.Model) -> bool:
    """Whether a sum of two products of 8 bits can leave 16 bits in some layer."""
    return any(_is_layer_weight(node) and _signed(node) is not None for node in model.graph)


def own_zero_points(model: ir.Model) -> tuple[ir.Model, bool]:
    """Give each int8 weight zero points of its own: ONNX Runtime 1.32 cannot make two weights uint8 that share them."""
    modified = False
    for node in model.graph:
        affine = affine_of(node) if node.op_type == DEQUANTIZE and is_weight(node) else None
        if affine is not None and affine.zero_point.dtype == np.int8:
            node.replace_input_with(2, add_constant(model, f"{node.name}_zero_point", affine.zero_point))
            modified = True
    return model, modified


def _raise_weight(model: ir.Model, node: ir.Node) -> None:
    source, array = node.inputs[0], constant(node.inputs[0])
    assert source is not None
    assert array is not None
    node.replace_input_with(0, add_constant(model, (source.name or "weight").replace("int8", "uint8"), _raised(array)))


def _raised(integers: np.typing.NDArray[np.int8]) -> np.typing.NDArray[np.uint8]:
    return (integers.astype(np.int16) + _SHIFT).astype(np.uint8)


def _signed(node: ir.Node) -> Affine | None:
    if node.op_type not in (QUANTIZE, DEQUANTIZE) or _is_depthwise(node) or _cannot_saturate(node):
        return None
    affine = affine_of(node)
    return affine if affine is not None and affine.zero_point.dtype == np.int8 else None


def _is_layer_weight(node: ir.Node) -> bool:
    """Whether a node dequantizes the weight of layers; a constant that is added or multiplied counts as an activation."""
    users = [use.node for use in node.outputs[0].uses()]
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return is_weight(node) and bool(users) and all(user.op_type in layers for user in users)


def _is_depthwise(node: ir.Node) -> bool:
    """Whether a node dequantizes the weight (N, 1, *kernel) of convs with one input channel a group."""
    users = [use.node for use in node.outputs[0].uses()]
    weight = constant(node.inputs[0])
    if weight is None or weight.ndim < 3 or weight.shape[1] != 1 or not users:
        return False
    return all(user.op_type == "Conv" and user.attributes.get_int("group", 1) == weight.shape[0] > 1 for user in users)


def _cannot_saturate(node: ir.Node) -> bool:
    """Whether a node dequantizes a weight (N, M, *kernel) of convs, or (N, M) of Gemms, that is exact as int8."""
    weight = constant(node.inputs[0])
    users = [use.node for use in node.outputs[0].uses()]
    if weight is None or weight.ndim < 2 or weight.dtype != np.int8 or not users:
        return False
    if any(user.op_type not in ("Conv", "Gemm") or user.inputs[1] is not node.outputs[0] for user in users):
        return False
    if any(user.op_type == "Gemm" and user.attributes.get_int("transB", 0) != 1 for user in users):
        return False
    return is_pair_safe(torch.tensor(weight))


def _all_unsigned(model: ir.Model) -> str | None:
    names = [node.name for node in model.graph if _signed(node) is not None]
    return f"'{names[0]}' is int8" if names else None


def _activations_unsigned(model: ir.Model) -> str | None:
    names = [node.name for node in model.graph if not _is_layer_weight(node) and _signed(node) is not None]
    return f"'{names[0]}' is int8" if names else None


UNSIGNED: GraphPass[ir.Model] = GraphPass("onnx-unsigned", unsigned, ensures=(_all_unsigned,))
OWN_ZERO_POINTS: GraphPass[ir.Model] = GraphPass("onnx-own-zero-points", own_zero_points)
UNSIGNED_ACTIVATIONS: GraphPass[ir.Model] = GraphPass(
    "onnx-unsigned-activations", functools.partial(unsigned, weights=False), ensures=(_activations_unsigned,)
)
