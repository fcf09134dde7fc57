"""The four tiny models through describe, execute and run, against a reference in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefold.artifact import Artifact, Format, Precision, TensorSpec, sha256_of
from edgefold.errors import ArtifactError, ModelError, RuntimeFailure
from edgefold.runtime.session import dequantize, describe, execute, quantize, run

Floats = NDArray[np.float32]
SCALE_IN, SCALE_OUT = 1 / 127, 12 / 127


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite", pytest.param("tiny.pte", id="tiny.pte")])
def test_fp32_files_give_the_references_numbers_in_torchs_layout(
    tiny: Path, images: Floats, expected: NDArray[np.float64], name: str
) -> None:
    (output,) = run(tiny / name, images)
    assert output.dtype == np.float32
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_int8_file_takes_and_gives_floats(tiny: Path, images: Floats, expected: NDArray[np.float64]) -> None:
    (output,) = run(tiny / "tiny-int8.tflite", images)
    assert output.dtype == np.float32
    steps = np.abs(output - expected) / SCALE_OUT
    assert steps.max() < 3
    # Every value lies on the file's grid.
    np.testing.assert_allclose(output / np.float32(SCALE_OUT), np.rint(output / np.float32(SCALE_OUT)), atol=1e-4)


def test_execute_speaks_the_files_own_types(tiny: Path, images: Floats) -> None:
    integers = np.rint(images.transpose(0, 2, 3, 1) / SCALE_IN).astype(np.int8)
    (raw,) = execute(tiny / "tiny-int8.tflite", [integers[:, None]])
    assert raw.dtype == np.int8
    assert raw.shape == (3, 1, 16, 16, 4)
    (output,) = run(tiny / "tiny-int8.tflite", images)
    real = raw[:, 0].transpose(0, 3, 1, 2).astype(np.float32) * np.float32(SCALE_OUT)
    np.testing.assert_array_equal(output, real)


def test_describe_reads_the_metadata(tiny: Path) -> None:
    found = describe(tiny / "tiny-int8.tflite")
    assert found.format is Format.TFLITE
    assert found.precision is Precision.INT8
    assert found.inputs == (TensorSpec("input", (1, 16, 16, 3), "int8", "nhwc", SCALE_IN, 0),)
    assert found.outputs == (TensorSpec("output", (1, 16, 16, 4), "int8", "nhwc", SCALE_OUT, 0),)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("foreign.onnx", TensorSpec("input", (1, 3, 16, 16), "float32")),
        ("foreign-int8.tflite", TensorSpec("input", (1, 16, 16, 3), "int8", "torch", float(np.float32(SCALE_IN)), 0)),
        ("foreign.pte", TensorSpec("input_0", (1, 3, 16, 16), "float32")),
    ],
)
def test_describe_asks_the_runtime_about_foreign_files(tiny: Path, name: str, spec: TensorSpec) -> None:
    found = describe(tiny / name)
    assert found.precision is None
    assert found.inputs == (spec,)


def test_an_artifact_is_checked_by_its_hash_before_it_runs(tiny: Path, images: Floats, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(tiny / "tiny.onnx", path)
    found = describe(path)
    artifact = Artifact(path, found.format, Precision.FP32, sha256_of(path), found.inputs, found.outputs)
    assert run(artifact, images)[0].shape == (3, 4, 16, 16)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"has SHA-256 .* expected .*: it was changed"):
        run(artifact, images)


def test_a_truncated_file_is_one_sentence_from_the_runtime(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pte"
    data = (tiny / "tiny.pte").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RuntimeFailure, match=r"the executorch runtime (crashed on|refused) 'bad.pte'"):
        execute(path, [np.zeros((1, 1, 3, 16, 16), np.float32)])


def test_a_runtime_that_takes_too_long_is_stopped(tiny: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"did not finish 'tiny.onnx' within 0.01 s and was stopped"):
        execute(tiny / "tiny.onnx", [np.zeros((1, 1, 3, 16, 16), np.float32)], timeout_s=0.01)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 3, 16, 15), np.float32), r"input 'input' of 'tiny.onnx' has shape \(1, 3, 16, 15\)"),
        (np.zeros((3, 16, 16), np.float32), r"expected \(any multiple of 1, 3, 16, 16\) in torch's order"),
        (np.zeros((0, 3, 16, 16), np.float32), r"has shape \(0, 3, 16, 16\)"),
        ([np.zeros((1, 3, 16, 16), np.float32)] * 2, r"2 inputs given, 'tiny.onnx' takes 1: input"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(tiny: Path, inputs: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run(tiny / "tiny.onnx", inputs)


def test_raw_inputs_of_the_wrong_type_are_refused(tiny: Path) -> None:
    with pytest.raises(ArtifactError, match=r"input 'input' is float64 \[1, 3, 16, 16\], the file wants float32"):
        execute(tiny / "tiny.onnx", [np.zeros((1, 1, 3, 16, 16))])


def test_quantize_rounds_clips_and_refuses_nan() -> None:
    spec = TensorSpec("x", (4,), "int8", scale=0.5, zero_point=3)
    values = np.array([0.0, 0.24, 1e9, -1e9], np.float32)
    np.testing.assert_array_equal(quantize(spec, values), np.array([3, 3, 127, -128], np.int8))
    np.testing.assert_array_equal(dequantize(spec, np.array([3, -128], np.int8)), np.array([0.0, -65.5], np.float32))
    with pytest.raises(ModelError, match="input 'x' holds NaN or infinity"):
        quantize(spec, np.array([np.nan], np.float32))


def test_integer_inputs_that_are_not_quantized_pass_through() -> None:
    spec = TensorSpec("ids", (2,), "int64")
    np.testing.assert_array_equal(quantize(spec, np.array([1, 2], np.int32)), np.array([1, 2], np.int64))
    with pytest.raises(ModelError, match="input 'ids' is float32, expected integers"):
        quantize(spec, np.array([1.0, 2.0], np.float32))
