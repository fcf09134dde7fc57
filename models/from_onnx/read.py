"""An ``.onnx`` file as an `onnx_ir` graph, with everything in it checked before it is used.

Protocol buffers are data: parsing runs no code of the file. What a bad file could still do is waste memory, read other files, or
stop the reader in the middle. So sizes are checked before they are allocated, external weights are read here and from the file's
own folder only, functions are written out up to a limit, and what is left is one flat graph of standard ops in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgefold.errors import ModelError, UnsupportedError, first_line

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MIN_OPSET: Final = 9
MAX_OPSET: Final = 26
MAX_NODES: Final = 100_000
_MAX_BYTES: Final = 2**31 - 1  # what one protocol buffer can hold
_STANDARD: Final = ("", "ai.onnx")
_QUANTIZED: Final = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def read_model(path: Path) -> ir.Model:
    """The model of a file: one graph of standard ops, sorted, weights in memory.

    Raises:
        ModelError: not an ONNX model, damaged, external weights that are missing or outside of its folder, or a cycle.
        UnsupportedError: an opset out of `MIN_OPSET` to `MAX_OPSET`, ops of other domains, or a quantized network.
    """
    import onnx_ir as ir

    proto = _parse(path)
    for tensor in _tensors(proto):
        _load_external(tensor, path)
        _check_size(tensor, path)
    try:
        model = ir.from_proto(proto)
        assert isinstance(model, ir.Model)
        _write_out_functions(model, path)
        model.graph.sort()
    except (ModelError, UnsupportedError):
        raise
    except Exception as error:  # the reader raises whatever a malformed message leads it to
        reason = "its graph has a cycle" if "cycle" in str(error).lower() else first_line(error)
        raise ModelError(f"'{path}' is not a sound ONNX model: {reason}; export it anew") from error
    _check_ops(model, path)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs

    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"'{path}' has {size} bytes, expected at most {_MAX_BYTES}; keep its weights in a file beside it")
        proto = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise ModelError(f"'{path}' is not an ONNX model or is damaged; export it again or fetch it again") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}; give the path of an .onnx file") from error
    _check_text(proto, path)
    graph = proto.graph
    missing = [name for name, there in (("node", graph.node), ("input", graph.input), ("output", graph.output)) if not there]
    if missing:
        raise ModelError(f"'{path}' is no ONNX model, or is damaged: its graph has no {missing[0]}; export it again")
    versions = [entry.version for entry in proto.opset_import if entry.domain in _STANDARD]
    if not versions or not MIN_OPSET <= versions[0] <= MAX_OPSET:
        found = f"opset {versions[0]}" if versions else "no opset"
        raise UnsupportedError(f"'{path}' has {found}, expected {MIN_OPSET} to {MAX_OPSET}; export it with opset 18")
    if graph.sparse_initializer:
        raise UnsupportedError(f"'{path}' keeps weights as sparse tensors, expected dense ones; export it without them")
    return proto


def _check_text(proto: onnx.ModelProto, path: Path) -> None:
    """That every name is text: the parser gives others as bytes."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    named = [*proto.graph.initializer, *proto.graph.input, *proto.graph.output, *proto.functions, *nodes]
    names: list[object] = [each.name for each in named]
    names += [entry.domain for entry in proto.opset_import]
    for node in nodes:
        names += [node.op_type, node.domain, *node.input, *node.output, *(attribute.name for attribute in node.attribute)]
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"'{path}' has a name that is no text; the file is damaged, export it again or fetch it again")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from proto.graph.initializer
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Moves weights that lie in another file into the tensor.

    Raises:
        ModelError: the file is missing, too short, or not inside the model's folder.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.resolve().parent
    try:
        file = (folder / location).resolve()
        inside = bool(location) and not Path(location).is_absolute() and file.is_relative_to(folder)
    except (OSError, ValueError):  # a loop of links, a name with a zero byte
        inside = False
    if not inside:
        raise ModelError(
            f"'{path}' keeps weight '{tensor.name}' in '{location}', which is not inside its folder; "
            "put both files into one folder and export the model anew"
        )
    if not file.is_file():
        raise ModelError(f"'{path}' keeps weight '{tensor.name}' in '{location}', which does not exist; put it beside the model")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or file.stat().st_size - offset)
    except ValueError as error:
        raise ModelError(f"'{path}' says wrongly where weight '{tensor.name}' is ({error}); export it anew") from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ModelError(
            f"'{path}' keeps weight '{tensor.name}' at bytes {offset} to {offset + length} of '{location}', "
            f"which has {file.stat().st_size}; fetch both files again"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _check_size(tensor: onnx.TensorProto, path: Path) -> None:
    """That a tensor holds as much data as its shape says.

    Raises:
        ModelError: it holds more or less.
        UnsupportedError: its element type cannot be read.
    """
    import onnx

    known: dict[int, tuple[str, int]] = {
        onnx.TensorProto.FLOAT: ("float_data", 4),
        onnx.TensorProto.DOUBLE: ("double_data", 8),
        onnx.TensorProto.FLOAT16: ("int32_data", 2),
        onnx.TensorProto.BFLOAT16: ("int32_data", 2),
        onnx.TensorProto.INT8: ("int32_data", 1),
        onnx.TensorProto.UINT8: ("int32_data", 1),
        onnx.TensorProto.INT16: ("int32_data", 2),
        onnx.TensorProto.INT32: ("int32_data", 4),
        onnx.TensorProto.INT64: ("int64_data", 8),
        onnx.TensorProto.BOOL: ("int32_data", 1),
    }
    if tensor.data_type not in known:
        name = onnx.TensorProto.DataType.Name(tensor.data_type) if 0 < tensor.data_type < 30 else str(tensor.data_type)
        raise UnsupportedError(f"weight '{tensor.name}' of '{path}' is of type {name}, expected floats, integers or booleans")
    field, width = known[tensor.data_type]
    expected = math.prod(tensor.dims) if min(tensor.dims, default=0) >= 0 else -1
    found = len(tensor.raw_data) / width if tensor.HasField("raw_data") else len(getattr(tensor, field))
    if found != expected:
        shape = "×".join(map(str, tensor.dims)) or "one value"
        raise ModelError(f"weight '{tensor.name}' of '{path}' is {shape} and holds {found:g} values; the file is damaged")


def _write_out_functions(model: ir.Model, path: Path) -> None:
    """Replaces calls of the file's own functions by their bodies.

    Raises:
        ModelError: a function calls itself.
        UnsupportedError: there would be more than `MAX_NODES` nodes.
    """
    from onnx_ir.passes.common import InlinePass

    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(nodes: ir.Graph | ir.Function, open_: tuple[ir.OperatorIdentifier, ...]) -> int:
        total = 0
        for node in nodes:
            key = node.op_identifier()
            if key in open_:
                raise ModelError(f"function '{key[1]}' of '{path}' calls itself; export the model anew")
            if key in model.functions and key not in sizes:
                sizes[key] = size(model.functions[key], (*open_, key))
            total += sizes.get(key, 1)
        return total

    if size(model.graph, ()) > MAX_NODES:
        raise UnsupportedError(f"'{path}' has more than {MAX_NODES} nodes; such a network is no lightweight one")
    if model.functions:
        InlinePass()(model)


def _check_ops(model: ir.Model, path: Path) -> None:
    for number, node in enumerate(model.graph):
        place = f"node '{node.name or number}'"
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise UnsupportedError(
                f"'{path}' is quantized already ({node.op_type} in {place}); give the float model that it was made from"
            )
        if node.domain not in _STANDARD:
            raise UnsupportedError(
                f"'{path}' has op {node.op_type} of domain '{node.domain}' in {place}, expected standard ONNX ops; export it anew"
            )
