"""Metadata is read from whole files, and damaged ones are refused without a runtime."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from edgefold.errors import ArtifactError
from edgefold.runtime.container import format_of, read_metadata


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite", "tiny-int8.tflite", "tiny.pte"])
def test_metadata_is_found(tiny: Path, name: str) -> None:
    text = read_metadata(tiny / name)
    assert text is not None
    assert json.loads(text)["schema"] == "edgefold.artifact/1"


@pytest.mark.parametrize("name", ["foreign.onnx", "foreign-int8.tflite", "foreign.pte"])
def test_foreign_files_have_none(tiny: Path, name: str) -> None:
    assert read_metadata(tiny / name) is None


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pte"])
@pytest.mark.parametrize("content", [b"", b"not a model at all, only text", b"\0" * 64, b"\xff" * 64])
def test_what_is_no_model_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not (an ONNX model|a TFLite model|an ExecuTorch program) or is damaged"):
        read_metadata(path)


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite", "tiny.pte"])
def test_damaged_files_never_give_another_error(tiny: Path, tmp_path: Path, name: str) -> None:
    original = (tiny / name).read_bytes()
    random_bits = random.Random(0)
    path = tmp_path / f"damaged{Path(name).suffix}"
    refused = 0
    for _ in range(300):
        data = bytearray(original[: random_bits.choice([len(original), random_bits.randrange(len(original))])])
        for _ in range(random_bits.randrange(1, 20)):
            if data:
                data[random_bits.randrange(len(data))] = random_bits.randrange(256)
        path.write_bytes(data)
        try:
            read_metadata(path)
        except ArtifactError:
            refused += 1
    assert refused > 50


def test_suffix_and_presence_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model file '.*none.onnx' does not exist"):
        format_of(tmp_path / "none.onnx")
    (tmp_path / "model.pt2").touch()
    with pytest.raises(ArtifactError, match=r"has the suffix '.pt2', expected .onnx, .tflite or .pte"):
        format_of(tmp_path / "model.pt2")
