"""Editing TFLite flatbuffers: nothing is lost on the way through, and edited files run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefold.artifact import TensorSpec
from edgefold.errors import ArtifactError, RuntimeFailure
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.tflite_ends import check_ends, name_ends, set_metadata
from edgefold.export.passes.tflite_half_weights import HALF_WEIGHTS
from edgefold.export.passes.tflite_io import convert_ends
from edgefold.export.passes.tflite_model import TfliteModel, dump, load, type_name
from edgefold.export.passes.tflite_names import NAME_BY_MODULE, main_path

TINY = Path(__file__).parents[2] / "data" / "tiny"


def run(data: bytes, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


def ends(model: TfliteModel) -> tuple[list[Any], list[Any]]:
    return [model.tensor(i) for i in model.graph.inputs], [model.tensor(i) for i in model.graph.outputs]


def sample(model: TfliteModel) -> list[NDArray[Any]]:
    generator = np.random.default_rng(0)
    values = []
    for tensor in ends(model)[0]:
        shape = tuple(int(size) for size in tensor.shape)
        if type_name(tensor.type) == "int8":
            values.append(generator.integers(-128, 128, shape, dtype=np.int8))
        else:
            values.append(generator.uniform(-1, 1, shape).astype(np.float32))
    return values


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny-int8.tflite"])
def test_a_round_trip_changes_nothing(name: str) -> None:
    data = (TINY / name).read_bytes()
    model = load(data)
    again = dump(model)
    inputs = sample(model)
    for found, expected in zip(run(again, inputs), run(data, inputs), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [load(again).kind(one) for one in load(again).graph.operators] == [model.kind(one) for one in model.graph.operators]


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x00" * 64])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a TFLite model"):
        load(data)


@pytest.mark.parametrize(("dtype", "shift"), [("float32", 0), ("uint8", 128)])
def test_ends_are_converted_around_the_same_integers(dtype: str, shift: int) -> None:
    data = (TINY / "tiny-int8.tflite").read_bytes()
    model = load(data)
    assert {type_name(tensor.type) for side in ends(model) for tensor in side} == {"int8"}
    inputs = sample(model)
    (expected,) = run(data, inputs)
    scales = [(float(t.quantization.scale[0]), int(t.quantization.zeroPoint[0])) for side in ends(model) for t in side]
    specs = [
        TensorSpec(
            name, tuple(int(n) for n in tensor.shape), dtype, "torch", *((s, z + shift) if dtype == "uint8" else (None, None))
        )
        for name, tensor, (s, z) in zip(("x", "y"), [side[0] for side in ends(model)], scales, strict=True)
    ]
    convert_ends(model, tuple(specs[:1]), tuple(specs[1:]))
    name_ends(model, tuple(specs[:1]), tuple(specs[1:]))
    check_ends(model, tuple(specs[:1]), tuple(specs[1:]))
    (scale, zero), (out_scale, out_zero) = scales
    integers = inputs[0].astype(np.int16)
    fed = (integers + shift).astype(np.uint8) if dtype == "uint8" else ((integers - zero) * np.float32(scale)).astype(np.float32)
    (found,) = run(dump(model), [fed])
    if dtype == "uint8":
        np.testing.assert_array_equal(found.astype(np.int16) - shift, expected)
    else:
        np.testing.assert_allclose(found, (expected.astype(np.int16) - out_zero) * np.float32(out_scale), rtol=1e-6)


def test_half_weights_compute_nearly_the_same_from_fewer_bytes() -> None:
    data = (TINY / "tiny.tflite").read_bytes()
    model, modified = run_passes(load(data), (HALF_WEIGHTS,))
    assert modified
    weights = [model.constant(i) for one in model.operators("DEQUANTIZE") for i in one.inputs]
    assert weights
    assert {weight.dtype for weight in weights if weight is not None} == {np.dtype(np.float16)}
    inputs = sample(load(data))
    for found, expected in zip(run(dump(model), inputs), run(data, inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_wrong_ends_are_noticed() -> None:
    model = load((TINY / "tiny.tflite").read_bytes())
    wrong = (TensorSpec("x", (1, 2), "float32"),)
    with pytest.raises(RuntimeFailure, match="TFLite file declares inputs"):
        check_ends(model, wrong, wrong)


def test_metadata_replaces_the_converters_notes() -> None:
    model = load((TINY / "tiny.tflite").read_bytes())
    set_metadata(model, "edgefold", '{"a": 1}', "edgefold test")
    again = load(dump(model))
    found = {entry.name.decode(): bytes(again.root.buffers[entry.buffer].data) for entry in again.root.metadata}
    assert found["edgefold"] == b'{"a": 1}'
    assert set(found) <= {"edgefold", "min_runtime_version"}


def test_tensors_are_named_after_the_first_op_of_a_fused_group() -> None:
    assert main_path("stage.0.relu;;stage.0.conv;1") == "stage.0.conv"
    assert main_path("head;") == "head"
    model, _ = run_passes(load((TINY / "tiny.tflite").read_bytes()), (NAME_BY_MODULE,))
    names = [str(tensor.name) for tensor in model.graph.tensors]
    assert len(names) == len(set(names))
