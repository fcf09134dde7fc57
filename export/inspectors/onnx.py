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

from edgefold.errors import ArtifactError, first_line
from edgefold.export.inspectors.ask import ask
from edgefold.export.inspectors.base import Kind, Op, Reading

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_CONVS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "NhwcFusedConv", "QLinearConv"})
_PRODUCTS = frozenset({"FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul"})
# What ONNX Runtime computes in a convolution's kernel.
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_BLOCKED = "_nchwc"  # of a conv that the runtime computes on channels in blocks
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Integer inside whatever their inputs are.
_MIXED = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeLSTM"})
_DYNAMIC = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
_WIDENS = frozenset({"Cast", "DequantizeLinear"})  # what may stand between a weight and the op that computes with it


def read(path: Path) -> Reading:
    """The ops that ONNX Runtime runs.

    Raises:
        ArtifactError: not an ONNX model, or one that the runtime refuses.
    """
    import onnx

    original = _load(path)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        optimized_path = Path(folder) / "optimized.onnx"
        ask("onnx", path, str(optimized_path))
        # Its weights may lie in files of their own, of which only names and types matter here.
        optimized = onnx.load(optimized_path, load_external_data=False)
    modules = _modules(optimized.graph, original.graph)
    return Reading(tuple(_ops(optimized.graph, modules, _macs_by_weight(original))))


def _modules(graph: GraphProto, original: GraphProto) -> list[str]:
    """The module of each node of the runtime's graph, empty where nothing tells.

    A node that the runtime made gives a value of the file, has its name from one (``VALUE_nchwc``), or serves its reader.
    """
    names = {node.name for node in original.node}
    makers = {name: _module(node) for node in original.node for name in node.output}
    readers: dict[str, str] = {}
    found = []
    for node in reversed(graph.node):
        module = _module(node)
        if not module and node.name not in names:
            made = (*node.output, node.name.removesuffix(_BLOCKED))
            served = [readers.get(name, "") for name in node.output]
            module = next((name for name in (*(makers.get(value, "") for value in made), *served) if name), "")
        for name in node.input:
            readers.setdefault(name, module)
        found.append(module)
    return found[::-1]


def _module(node: NodeProto) -> str:
    return node.name.rpartition("/")[0]


def _ops(graph: GraphProto, modules: list[str], macs: dict[str, int]) -> Iterable[Op]:
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    ends = {value.name for value in (*graph.input, *graph.output)}
    uses = Counter(name for node in graph.node for name in node.input)
    left = dict(macs)
    found: list[Op] = []
    for node, module in zip(graph.node, modules, strict=True):
        _infer_types(node, types)
        kind = _kind(node, types)
        # A weight that is widened to float counts for the op that computes with it.
        weights = [] if node.op_type in _WIDENS else [name for name in node.input if name in left]
        found.append(
            Op(
                node.op_type,
                kind,
                module,
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
    elif node.op_type == "QLinearConcat":  # its inputs begin with the scale and zero point of the output
        found = types.get(node.input[1], TensorProto.UINT8)
    elif node.op_type == "QGemm":
        found = types.get(node.input[8], TensorProto.FLOAT) if len(node.input) > 8 else TensorProto.FLOAT
    else:
        first = next((name for name in node.input if name), "")
        found = types.get(first, TensorProto.FLOAT)
    types.update(dict.fromkeys(node.output, found))


def _macs_by_weight(model: ModelProto) -> dict[str, int]:
    """The MACs of every conv and matrix product with a constant weight, by its name; of one sample where any batch goes."""
    found: dict[str, int] = {}
    for _, weight, macs in _layers(model):
        found[weight.name] = found.get(weight.name, 0) + macs
    return found


def _layers(model: ModelProto) -> Iterable[tuple[NodeProto, TensorProto, int]]:
    """Every conv and matrix product with a constant weight, the weight, and the MACs."""
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
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type in _WIDENS and node.input[0] in constants
    }
    for node in inferred.graph.node:
        if node.op_type in _CONVS | _PRODUCTS:
            name = next((sources.get(name, name) for name in node.input[1:] if sources.get(name, name) in constants), None)
            if name is not None and len(constants[name].dims) > 1:
                yield node, constants[name], _macs(node, tuple(constants[name].dims), shapes)


def work_by_name(path: Path) -> dict[str, tuple[str, int, int]]:
    """Module, MACs and bytes of weights by the names under which ONNX Runtime may tell of a node: its own and its output's.

    A conv that takes an activation in gets the name of the activation's output.

    Raises:
        ArtifactError: not an ONNX model.
    """
    model = _load(path)
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = {name: (_module(node), 0, 0) for node in model.graph.node for name in (node.name, *node.output) if name}
    for node, weight, macs in _layers(model):
        work = (_module(node), macs, _bytes(weight))
        while True:
            found |= {name: work for name in (node.name, node.output[0]) if name}
            readers = users.get(node.output[0], [])
            if len(readers) != 1 or readers[0].op_type not in _ACTIVATIONS:
                break
            node = readers[0]
    return found


def _bytes(tensor: TensorProto) -> int:
    import onnx

    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _load(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

    try:
        return onnx.load(path)
    except DecodeError as error:
        raise ArtifactError(f"'{path.name}' is not an ONNX model ({error}); fetch it again") from error
    except onnx.checker.ValidationError as error:
        raise ArtifactError(
            f"'{path.name}' keeps weights in a file that is not there: {first_line(error)}; put that file beside it"
        ) from error


def _macs(node: NodeProto, weight: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> int:
    output = shapes.get(node.output[0], ())
    attributes: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "ConvTranspose":
        return math.prod(shapes.get(node.input[0], ())) * math.prod(weight[1:])
    if node.op_type in _CONVS:
        return math.prod(output) * math.prod(weight[1:])
    inner = weight[1] if attributes.get("transB") else weight[-2]
    return math.prod(output) * inner
