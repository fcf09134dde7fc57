"""Canonical and quantized networks as files: JSON for what they are, safetensors for their tensors; nothing that is read can run.

    PATH.json          the nodes of the graph in their order, and the scales that are single numbers
    PATH.safetensors   weights, example inputs, and the scales, rounded weights and corrected biases

The graph may hold ATen ops and the picking of one of several results, and no others. Of what its nodes carry, module paths,
integers that are given from outside and joins in float are kept; shapes are computed again.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from edgefold.artifact import Precision
from edgefold.errors import ArtifactError, UnsupportedError
from edgefold.export.lower.nodes import record_values
from edgefold.export.plan import FoldPlan
from edgefold.export.program import Program, QuantizedProgram
from edgefold.quantize.calibrate import ScaleTable, attach
from edgefold.quantize.correct import EqualizedPair
from edgefold.quantize.graph import constant_of
from edgefold.quantize.pixels import PixelInput
from edgefold.quantize.scheme import FIXED, JOINED_FLOAT, QParams

SCHEMA: Final = "edgefold.program/1"
_GETITEM: Final = "getitem"
_STACK: Final = "nn_module_stack"
T = TypeVar("T")
_TORCH: Final = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def save_program(program: Program, path: Path) -> None:
    """Writes a network to ``path`` with the suffixes ``.json`` and ``.safetensors``.

    Raises:
        UnsupportedError: its graph holds an op or an argument that such a file cannot.
    """
    record, tensors = _program_record(program)
    _write(path, record, tensors)


def load_program(path: Path) -> Program:
    """What `save_program` wrote.

    Raises:
        ArtifactError: the files are missing, damaged, or of another version.
    """
    return _checked(path, _program)


def save_quantized(quantized: QuantizedProgram, path: Path) -> None:
    """Writes a quantized network: the float network that its table belongs to, and the table.

    Raises:
        UnsupportedError: as `save_program`.
    """
    record, tensors = _program_record(quantized.canonical)
    table = quantized.table
    record["quantized"] = {
        "scheme": quantized.scheme.value,
        "float_layers": quantized.float_layers,
        "equalized": [asdict(pair) for pair in quantized.equalized],
        "pixels": None if quantized.pixels is None else asdict(quantized.pixels),
        "activations": {name: asdict(params) for name, params in table.activations.items()},
        "branches": {name: {key: asdict(params) for key, params in pair.items()} for name, pair in table.branches.items()},
        "weights": list(table.weights),
        "biases": list(table.biases),
        "rounded": list(table.rounded),
        "clipped": table.clipped,
        "observer": table.observer,
        "samples": table.samples,
        "full_range": sorted(table.full_range),
        "dynamic": table.dynamic,
        "exponent_bits": table.exponent_bits,
        "findings": quantized.findings,
    }
    tensors |= {f"scale:{name}": value for name, value in table.weights.items()}
    tensors |= {f"bias:{name}": value for name, value in table.biases.items()}
    tensors |= {f"rounded:{name}": value for name, value in table.rounded.items()}
    _write(path, record, tensors)


def load_quantized(path: Path, plan: FoldPlan) -> QuantizedProgram:
    """What `save_quantized` wrote; ``plan`` is that of its fold.

    Raises:
        ArtifactError: as `load_program`.
    """

    def read(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedProgram:
        base, found = _program(record, tensors), record["quantized"]
        table = ScaleTable(
            activations={name: QParams(**params) for name, params in found["activations"].items()},
            weights={name: tensors[f"scale:{name}"] for name in found["weights"]},
            branches={name: {key: QParams(**params) for key, params in pair.items()} for name, pair in found["branches"].items()},
            biases={name: tensors[f"bias:{name}"] for name in found["biases"]},
            rounded={name: tensors[f"rounded:{name}"] for name in found["rounded"]},
            clipped=found["clipped"],
            observer=found["observer"],
            samples=found["samples"],
            full_range=frozenset(found["full_range"]),
            dynamic=found["dynamic"],
            exponent_bits=found["exponent_bits"],
        )
        pixels = found["pixels"] and PixelInput(tuple(found["pixels"]["mean"]), tuple(found["pixels"]["std"]))
        pairs = tuple(EqualizedPair(**pair) for pair in found["equalized"])
        program = Program(attach(base.graph, table), base.example_inputs, base.input_names, base.output_names)
        scheme = Precision(found["scheme"])
        layers, findings = tuple(found["float_layers"]), tuple(found["findings"])
        return QuantizedProgram(program, table, scheme, plan, base, layers, pairs, pixels, findings)

    return _checked(path, read)


def _write(path: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    # A copy each: safetensors refuses tensors that share memory.
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")


def _checked(path: Path, read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], T]) -> T:
    """What ``read`` makes of the two files."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ArtifactError(f"'{path}.json' has schema '{record['schema']}', expected '{SCHEMA}'; make it again")
        with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
        return read(record, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"'{path}.json' holds no network that can be read ({error}); make it again") from error


def _program_record(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    graph = program.graph
    nodes: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    parameters: list[str] = []
    for node in graph.graph.nodes:
        entry: dict[str, Any] = {"name": node.name, "op": node.op, "target": _name_of(node)}
        if node.op == "get_attr":
            target = str(node.target)
            tensors[f"weight:{target}"] = constant_of(graph, node)
            if target in dict(graph.named_parameters(remove_duplicate=False)):
                parameters.append(target)
        elif node.op != "placeholder":
            entry |= {"args": _plain(tuple(node.args)), "kwargs": {key: _plain(value) for key, value in node.kwargs.items()}}
        if _STACK in node.meta:
            entry["stack"] = [[key, str(path), str(kind)] for key, (path, kind) in node.meta[_STACK].items()]
        if FIXED in node.meta:
            entry["fixed"] = asdict(node.meta[FIXED])
        if JOINED_FLOAT in node.meta:
            entry["joined_float"] = True
        nodes.append(entry)
    tensors |= {f"input:{index}": tensor for index, tensor in enumerate(program.example_inputs)}
    return {
        "schema": SCHEMA,
        "nodes": nodes,
        "parameters": parameters,
        "inputs": program.input_names,
        "outputs": program.output_names,
        "code": _code_of(graph),
    }, tensors


def _program(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    root, graph = nn.Module(), Graph()
    nodes: dict[str, Node] = {}
    for entry in record["nodes"]:
        target = entry["target"]
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if entry["op"] == "get_attr":
            _put(root, target, tensors[f"weight:{target}"], parameter=target in record["parameters"])
        elif entry["op"] != "placeholder":
            args = _value(entry["args"], nodes)
            kwargs = {key: _value(value, nodes) for key, value in entry["kwargs"].items()}
        call = _op(target) if entry["op"] == "call_function" else target
        node = graph.create_node(entry["op"], call, args, kwargs, name=entry["name"])
        if "stack" in entry:
            node.meta[_STACK] = {key: (path, kind) for key, path, kind in entry["stack"]}
        if "fixed" in entry:
            node.meta[FIXED] = QParams(**entry["fixed"])
        if "joined_float" in entry:
            node.meta[JOINED_FLOAT] = True
        nodes[entry["name"]] = node
    module = GraphModule(root, graph).eval()
    if _code_of(module) != record["code"]:
        raise ValueError("its graph is another one")
    inputs = tuple(tensors[f"input:{index}"] for index in range(len(record["inputs"])))
    record_values(module, inputs)
    return Program(module, inputs, tuple(record["inputs"]), tuple(record["outputs"]))


def _code_of(module: GraphModule) -> str:
    """The SHA-256 of the graph as Python code, in which every name and argument stands."""
    return hashlib.sha256(module.code.encode()).hexdigest()


def _name_of(node: Node) -> str:
    if node.op in ("placeholder", "output", "get_attr"):
        return str(node.target)
    if node.target is operator.getitem:
        return _GETITEM
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target).removeprefix("aten.")
    raise UnsupportedError(f"the graph calls '{node.target}', expected ATen ops only; such a network is not kept as a file")


def _op(name: str) -> Callable[..., Any]:
    if name == _GETITEM:
        return operator.getitem
    packet, _, overload = name.rpartition(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise TypeError(f"'{name}' is no op")
    return found


def _plain(value: object) -> Any:
    """An argument of a node as JSON."""
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float):
        return value if abs(value) < float("inf") else {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _TORCH.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise UnsupportedError(f"the graph has an argument of type {type(value).__name__}; such a network is not kept as a file")


def _value(plain: Any, nodes: Mapping[str, Node]) -> Any:
    """The argument that `_plain` wrote."""
    if isinstance(plain, list):
        return [_value(each, nodes) for each in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(_value(each, nodes) for each in content)
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    found = getattr(torch, content)
    if not isinstance(found, _TORCH[kind]):
        raise TypeError(f"'{content}' is no {kind}")
    return found


def _put(root: nn.Module, target: str, value: Tensor, *, parameter: bool) -> None:
    """Registers a tensor under a dotted path."""
    *path, name = target.split(".")
    place = root
    for part in path:
        if part not in place._modules:
            place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    if name in place._parameters or name in place._buffers:
        return
    if parameter:
        place.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        place.register_buffer(name, value)
