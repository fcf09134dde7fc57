"""ExecuTorch: the instructions of the program and the graphs inside its XNNPACK delegates."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgefold.errors import ArtifactError
from edgefold.export.inspectors.base import Kind, Op, Reading

_XNNPACK = "XnnpackBackend"
_CONVS = frozenset({"XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d"})
_INPUTS = ("input_id", "input1_id", "input2_id")
_BYTES = {"fp64": 8, "fp32": 4, "qint32": 4, "qcint32": 4, "fp16": 2, "pfp32": 4, "bf16": 2}
_FLOATS = frozenset({"xnn_datatype_fp32", "xnn_datatype_fp16", "xnn_datatype_pfp32", "xnn_datatype_bf16"})


def read(path: Path, modules: dict[int, str]) -> Reading:
    """The ops of the method ``forward``, those inside delegates included.

    Args:
        modules: debug handle to module path, from the file's metadata.

    Raises:
        ArtifactError: not an ExecuTorch program.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    data = path.read_bytes()
    try:
        program = deserialize_pte_binary(data).program
        plan = next(plan for plan in program.execution_plan if plan.name == "forward")
        ops: list[Op] = []
        partitions = 0
        for step in plan.chains[0].instructions:
            call = step.instr_args
            if hasattr(call, "delegate_index"):
                partitions += 1
                ops += _delegate(program, plan, call, modules)
            elif hasattr(call, "op_index"):
                ops.append(_kernel(plan, call))
    except Exception as error:  # the parser runs into whatever a damaged file makes of its indices and sizes
        raise ArtifactError(
            f"'{path.name}' is not a sound ExecuTorch program ({type(error).__name__}); fetch it again"
        ) from error
    return Reading(tuple(ops), partitions)


def _kernel(plan: Any, call: Any) -> Op:
    """An op outside of any delegate."""
    operator = plan.operators[call.op_index]
    name = operator.name if not operator.overload else f"{operator.name}.{operator.overload}"
    if "quantize" in name:
        return Op(name, Kind.CONVERSION, accelerated=False)
    result = plan.values[call.args[-1]].val
    scalar_type = getattr(getattr(result, "scalar_type", None), "name", "FLOAT")
    return Op(name, Kind.FLOAT if scalar_type in ("FLOAT", "HALF", "DOUBLE") else Kind.INTEGER, accelerated=False)


def _delegate(program: Any, plan: Any, call: Any, modules: dict[int, str]) -> Iterator[Op]:
    delegate = plan.delegates[call.delegate_index]
    if delegate.id != _XNNPACK:
        yield Op(delegate.id, Kind.FLOAT)
        return
    graph = _xnnpack_graph(bytes(program.backend_delegate_data[delegate.processed.index].data))
    values: dict[int, dict[str, Any]] = {}
    for entry in graph["xvalues"]:
        tensor = entry["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        values[tensor["id_out"]] = tensor
    ends = {*plan.inputs, *plan.outputs}
    moved = _moved(graph["xnodes"], values, lambda value: _is_external(value) and call.args[value["external_id"]] in ends)
    for node in graph["xnodes"]:
        kind, fields = node["xnode_union_type"], node["xnode_union"]
        tensors = [values[fields[key]] for key in _INPUTS if fields.get(key) in values]
        output = values[fields["output_id"]]
        yield Op(
            kind,
            Kind.MOVE if output["id_out"] in moved else _kind(kind, tensors, output),
            modules.get(node["debug_handle"], ""),
            macs=_macs(kind, fields, values),
            dynamic=any("qdint8" in value["datatype"] for value in tensors),
            is_conv=kind in _CONVS,
            at_end=any(
                value["id_out"] in moved or (_is_external(value) and call.args[value["external_id"]] in ends)
                for value in (*tensors, output)
            ),
            moved_bytes=sum(
                map(
                    _bytes,
                    (*tensors, output, *(values[fields[key]] for key in ("filter_id", "bias_id") if fields.get(key) in values)),
                )
            ),
        )


def _moved(nodes: list[dict[str, Any]], values: dict[int, dict[str, Any]], is_end: Callable[[dict[str, Any]], bool]) -> set[int]:
    """The results of transpositions of float inputs that are quantized next: a part of the file's end."""
    found = {
        node["xnode_union"]["output_id"]
        for node in nodes
        if node["xnode_union_type"] == "XNNStaticTranspose"
        and (source := values[node["xnode_union"]["input_id"]])["datatype"] in _FLOATS
        and is_end(source)
    }
    others = [node["xnode_union"] for node in nodes if node["xnode_union_type"] != "XNNConvert"]
    return found - {fields.get(key) for fields in others for key in _INPUTS}


def _bytes(value: dict[str, Any]) -> int:
    """The size of a value."""
    dims: list[int] = value["dims"]
    return math.prod(dims) * _BYTES.get(value["datatype"].removeprefix("xnn_datatype_"), 1)


def _is_external(value: dict[str, Any]) -> bool:
    """Whether a value is an input or output of the delegate (XNN_VALUE_FLAG_EXTERNAL_INPUT, _OUTPUT)."""
    return bool(value["flags"] & 3)


def _kind(kind: str, sources: list[dict[str, Any]], output: dict[str, Any]) -> Kind:
    is_float = [value["datatype"] in _FLOATS for value in (*sources, output)]
    if kind == "XNNConvert" and len(set(is_float)) > 1:
        return Kind.CONVERSION
    # Dynamically quantized products have a float output and an integer input.
    return Kind.FLOAT if is_float[0] and is_float[-1] else Kind.INTEGER


def _macs(kind: str, fields: dict[str, Any], values: dict[int, dict[str, Any]]) -> int:
    if kind not in _CONVS and kind != "XNNFullyConnected":
        return 0
    weight: list[int] = values[fields["filter_id"]]["dims"]
    output: list[int] = values[fields["output_id"]]["dims"]
    if kind == "XNNConv2d":  # weight (N, kh, kw, M / groups)
        return math.prod(output) * math.prod(weight[1:])
    if kind == "XNNDepthwiseConv2d":  # weight (1, kh, kw, N)
        return math.prod(output) * math.prod(weight[1:3])
    if kind == "XNNConvTranspose2d":  # weight (N, kh, kw, M)
        source: list[int] = values[fields["input1_id"]]["dims"]
        return math.prod(source) * math.prod(weight[:3])
    return math.prod(output) * weight[-1]  # weight (N, M)


def _xnnpack_graph(payload: bytes) -> dict[str, Any]:
    """The delegate's graph as plain data."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory(prefix="edgefold-") as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(_get_schema_bytes())
        start = header.flatbuffer_offset
        (folder / "graph.bin").write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(name, str(folder / "schema.fbs"), str(folder / "graph.bin"))
        text = (folder / "graph.json").read_text()
    # flatc writes infinite clip bounds as bare words, which JSON does not have.
    graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?inf|nan)\b", r': "\1"', text))
    return graph
