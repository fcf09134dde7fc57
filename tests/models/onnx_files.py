"""Small ONNX files of single ops, and the comparison of what is read from them with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from edgefold.models.from_onnx.source import from_onnx

Array = NDArray[Any]
Weight = Array | np.generic | None


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Array | np.generic],
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> onnx.ModelProto:
    """A model with float inputs of the shapes and outputs of any shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def op_model(
    kind: str, shape: Sequence[int], *weights: Weight, opset: int = 18, outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.ModelProto:
    """A model of one op, whose first input is the model's; a weight that is ``None`` is an optional input left out."""
    names = ["x", *("" if value is None else f"w{place}" for place, value in enumerate(weights))]
    held = {f"w{place}": value for place, value in enumerate(weights) if value is not None}
    node = helper.make_node(kind, names, list(outputs), name="the_op", **attributes)
    return model_of([node], {"x": shape}, held, outputs, opset)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """The model as a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def assert_agrees(model: onnx.ModelProto, folder: Path, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    """What is read gives what ONNX Runtime gives, to a share of the range of each output."""
    path = saved(model, folder)
    loaded = from_onnx(path)
    given = inputs or loaded.example_inputs
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    expected = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)})
    with torch.no_grad():
        found = loaded.module(*given)
    tensors = list(found.values()) if isinstance(found, dict) else [found]
    assert len(tensors) == len(expected)
    for tensor, array in zip(tensors, expected, strict=True):
        assert tuple(tensor.shape) == array.shape
        apart = np.abs(tensor.numpy().astype(np.float64) - array.astype(np.float64))
        spread = max(float(array.max() - array.min()), 1e-6) if array.size else 1.0
        assert apart.max(initial=0.0) <= tolerance * max(spread, float(np.abs(array).max(initial=0)))
