"""From an ``.onnx`` file to a module in eval mode with example inputs.

Layers keep the names that they had: where a weight is called ``features.0.weight``, its layer is ``features.0``; else it is
called like its node. The module is for inputs of one size. Dimensions that a file leaves open get one: the first becomes a batch
of 1, and any other must be given by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Generator, Tensor

from edgefold.errors import EdgefoldError, ModelError, UnsupportedError, UsageError, first_line
from edgefold.models.from_onnx.build import MAX_ELEMENTS, Builder, Operand, identifier
from edgefold.models.from_onnx.elementwise import DTYPES
from edgefold.models.from_onnx.op import Op, Result
from edgefold.models.from_onnx.read import read_model
from edgefold.models.from_onnx.shapes import as_tensor
from edgefold.models.from_onnx.table import HANDLERS
from edgefold.models.loaded import LoadedModel

if TYPE_CHECKING:
    import onnx_ir as ir

_WEIGHT: Final = ".weight"


def from_onnx(path: Path, sizes: Mapping[str, Any] | None = None) -> LoadedModel:
    """The network of an ONNX file.

    Args:
        path: of the file; weights in further files must lie in its folder.
        sizes: of the dimensions that the file leaves open, by name, such as ``{"height": 224}``.

    Raises:
        ModelError: not an ONNX model, damaged, or it does not fit together.
        UnsupportedError: an op that is not read, a quantized network, or an opset out of range.
        UsageError: an open dimension without a size, or a size for none.
    """
    model = read_model(path)
    opset = next(version for domain, version in model.opset_imports.items() if domain in ("", "ai.onnx"))
    initializers = model.graph.initializers
    values = [value for value in model.graph.inputs if value.name not in initializers]
    if not values:
        raise ModelError(f"'{path}' takes no inputs, expected at least one; a network without inputs is a constant")
    examples = _examples(values, dict(sizes or {}), path)
    builder = Builder()
    found: dict[ir.Value, Operand] = {}
    for value, example in zip(values, examples, strict=True):
        found[value] = builder.input(value.name or "input", example)
    for name, value in initializers.items():
        if value.const_value is None:
            raise ModelError(f"weight '{name}' of '{path}' has no values; export the model anew")
        found[value] = Operand(as_tensor(value.const_value), name=name)
    for number, node in enumerate(model.graph):
        _translate(node, number, opset, builder, found, path)
    outputs = _outputs(model.graph.outputs, found, path)
    return LoadedModel(path.stem, builder.finish(outputs), examples)


def _examples(values: Iterable[ir.Value], given: dict[str, Any], path: Path) -> tuple[Tensor, ...]:
    """Seeded inputs: standard normal, or zeros where they are no floats."""
    generator = Generator().manual_seed(0)
    unused, examples = set(given), []
    for value in values:
        if value.shape is None or value.dtype is None or value.dtype.value not in DTYPES:
            raise ModelError(f"input '{value.name}' of '{path}' has no shape or no type of numbers; export it with both")
        shape = []
        for place, size in enumerate(value.shape.dims):
            name = "" if isinstance(size, int) else str(size.value or "")
            if isinstance(size, int):
                shape.append(size)
            elif name in given:
                unused.discard(name)
                shape.append(_size(name, given[name]))
            elif place == 0:
                shape.append(1)
            else:
                raise UsageError(
                    f"input '{value.name}' of '{path}' leaves its dimension {place} open"
                    + (f"; give its size with --arg {name}=SIZE" if name else " and without a name; export it with a size")
                )
        if min(shape, default=1) < 1:
            raise ModelError(f"input '{value.name}' of '{path}' has shape {tuple(shape)}, expected sizes of at least 1")
        if math.prod(shape) > MAX_ELEMENTS:
            raise ModelError(f"input '{value.name}' of '{path}' has shape {tuple(shape)}, expected at most {MAX_ELEMENTS} values")
        dtype = DTYPES[value.dtype.value]
        examples.append(torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    if unused:
        raise UsageError(f"'{path}' leaves no dimension '{min(unused)}' open; leave the argument out")
    return tuple(examples)


def _size(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"the size of dimension '{name}' is {value!r}, expected a positive integer")
    return value


def _translate(node: ir.Node, number: int, opset: int, builder: Builder, found: dict[ir.Value, Operand], path: Path) -> None:
    place = f"node '{node.name or number}' of '{path}'"
    handler = HANDLERS.get(node.op_type)
    if handler is None:
        raise UnsupportedError(f"{node.op_type} in {place} is an op that Edgefold does not read; replace it and export anew")
    missing = [value.name for value in node.inputs if value is not None and value not in found]
    if missing:
        raise ModelError(f"{node.op_type} in {place} reads '{missing[0]}', which nothing gives; export the model anew")
    inputs = tuple(None if value is None else found[value] for value in node.inputs)
    op = Op(node, inputs, opset, builder, place, _path(node, number))
    try:
        results: Result = handler(op)
    except ModelError as error:
        raise ModelError(f"{node.op_type} in {place} cannot be read: {error}; export the model anew") from error
    except EdgefoldError:
        raise
    except Exception as error:  # torch raises whatever its checks of sizes and types raise
        raise ModelError(
            f"{node.op_type} in {place} does not fit its inputs: {first_line(error)}; export the model anew"
        ) from error
    for value, operand in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False):
        found[value] = operand


def _path(node: ir.Node, number: int) -> str:
    """The module path of a node: that of its weight, or else the node's own name."""
    for value in node.inputs[1:2]:
        if value is not None and value.name and value.name.endswith(_WEIGHT) and len(value.name) > len(_WEIGHT):
            return value.name.removesuffix(_WEIGHT)
    return node.name or f"{node.op_type}_{number}"


def _outputs(values: Iterable[ir.Value], found: dict[ir.Value, Operand], path: Path) -> dict[str, Operand]:
    outputs: dict[str, Operand] = {}
    for number, value in enumerate(values):
        if value not in found:
            raise ModelError(f"output '{value.name}' of '{path}' is given by nothing; export the model anew")
        name = identifier(value.name or f"output_{number}")
        while name in outputs:
            name += "_"
        outputs[name] = found[value]
    return outputs
