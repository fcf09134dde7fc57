"""ONNX: the graph that ONNX Runtime makes of the file, with MACs from the file's own shapes.

The runtime's graph has no shapes, but keeps the names of integer weights; a layer whose weight is read by an integer op there
counts as integer. Float weights may be repacked and renamed, so what is left over is float.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefold.errors import ArtifactError
from edgefold.export.inspectors.ask import ask
from edgefold.export.inspectors.base import Kind, Op, Reading

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_CONVS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "NhwcFusedConv", "QLinearConv"})
_PRODUCTS = frozenset({"FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Integer inside whatever their inputs are.
_MIXED = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeLSTM"})
_DYNAMIC = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"})


def read(path: Path) -> Reading:
    """The ops that ONNX Runtime runs.

    Raises:
        ArtifactError: not an ONNX model, or one that the runtime refuses.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

    try:
        original = onnx.load(path)
    except DecodeError as error:
        raise ArtifactError(f"'{path.name}' is not an ONNX model ({error}); fetch it again") from error
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        optimized_path = Path(folder) / "optimized.onnx"
        ask("onnx", path, str(optimized_path))
        optimized = onnx.load(optimized_path)
    return Reading(tuple(_ops(optimized.graph, _macs_by_weight(original))))


def _ops(graph: GraphProto, macs: dict[str, int]) -> Iterable[Op]:
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    ends = {value.name for value in (*graph.input, *graph.output)}
    uses = Counter(name for node in graph.node for name in node.input)
    left = dict(macs)
    found: list[Op] = []
    for node in graph.node:
        _infer_types(node, types)
        kind = _kind(node, types)
        # A weight that is widened to float counts for the op that computes with it.
        weights = [] if node.op_type == "DequantizeLinear" else [name for name in node.input if name in left]
        found.append(
            Op(
                node.op_type,
                kind,
                node.name.rpartition("/")[0],
                macs=sum(left.pop(name) for name in weights),
                is_conv=node.op_type in _CONVS,
                dynamic=node.op_type in _DYNAMIC,
                at_end=any(name in ends for name in (*node.input[:1], *node.output)) and uses[node.output[0]] <= 1,
            )
        )
    if left:
        # Weights that the runtime repacked under names of its own: spread over the layers that have none yet.
        found = _assign_rest(found, left)
    return found


def _assign_rest(ops: list[Op], left: dict[str, int]) -> list[Op]:
    rest = list(left.values())
    result = []
    for op in ops:
        if not op.macs and op.name in _CONVS | _PRODUCTS and rest:
            op = replace(op, macs=rest.pop(0))
        result.append(op)
    return result


def _kind(node: NodeProto, types: dict[str, int]) -> Kind:
    from onnx import TensorProto

    if node.op_type in _CONVERSIONS:
        return Kind.CONVERSION
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    if node.op_type.startswith("QLinear") or node.op_type in _MIXED or types.get(node.output[0]) not in floats:
        return Kind.INTEGER
    return Kind.FLOAT


def _infer_types(node: NodeProto, types: dict[str, int]) -> None:
    """The element type of a node's outputs: of its zero point, or else that of its first input."""
    from onnx import TensorProto

    if node.op_type == "DynamicQuantizeLinear":
        types.update(zip(node.output, (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8), strict=True))
        return
    if node.op_type == "QuantizeLinear":
        found = types.get(node.input[2], TensorProto.UINT8) if len(node.input) > 2 else TensorProto.UINT8
    elif node.op_type == "DequantizeLinear" or node.op_type in _MIXED:
        found = TensorProto.FLOAT
    elif node.op_type == "Cast":
        found = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    elif node.op_type in ("Shape", "Size", "ArgMax", "ArgMin", "NonZero"):
        found = TensorProto.INT64
    elif node.op_type in ("ConvInteger", "MatMulInteger"):
        found = TensorProto.INT32
    elif node.op_type == "QGemm":
        found = types.get(node.input[8], TensorProto.FLOAT) if len(node.input) > 8 else TensorProto.FLOAT
    else:
        first = next((name for name in node.input if name), "")
        found = types.get(first, TensorProto.FLOAT)
    types.update(dict.fromkeys(node.output, found))


def _macs_by_weight(model: ModelProto) -> dict[str, int]:
    """The MACs of every conv and matrix product with a constant weight, by its name; of one sample where any batch goes."""
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        first = next(iter(value.type.tensor_type.shape.dim), None)
        if first is not None and not first.HasField("dim_value"):
            first.dim_value = 1
            del model.graph.value_info[:]  # what was inferred for the open size
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes: dict[str, tuple[int, ...]] = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sources = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found: dict[str, int] = {}
    for node in inferred.graph.node:
        if node.op_type in _CONVS | _PRODUCTS:
            weight = next((sources.get(name, name) for name in node.input[1:] if sources.get(name, name) in constants), None)
            if weight is not None and len(constants[weight]) > 1:
                found[weight] = found.get(weight, 0) + _macs(node, constants[weight], shapes)
    return found


def _macs(node: NodeProto, weight: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> int:
    output = shapes.get(node.output[0], ())
    attributes: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "ConvTranspose":
        return math.prod(shapes.get(node.input[0], ())) * math.prod(weight[1:])
    if node.op_type in _CONVS:
        return math.prod(output) * math.prod(weight[1:])
    inner = weight[1] if attributes.get("transB") else weight[-2]
    return math.prod(output) * inner
