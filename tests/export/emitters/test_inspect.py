"""What `inspect` counts, against figures worked out by hand, and on files that are no models."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgefold.artifact import Artifact, Format, Precision
from edgefold.errors import ArtifactError, RuntimeFailure
from edgefold.export.inspect import inspect
from edgefold.pipeline import export_model, quantize_model

Emitted = Callable[..., Artifact]

# "residual" at 16x16: stem 16*3*9, group 16*4*9, point 16*16, down 24*16*9 at 8x8, head 24*10.
RESIDUAL_MACS = 256 * (16 * 3 * 9 + 16 * 4 * 9 + 16 * 16) + 64 * 24 * 16 * 9 + 240


@pytest.mark.parametrize("format", list(Format))
def test_int8_file_is_integer_throughout(format: Format, emitted: Emitted) -> None:
    found = inspect(emitted("residual", format, Precision.INT8).path)
    assert (found.format, found.precision, found.file) == (format, Precision.INT8, f"residual-int8{format.suffix}")
    assert found.macs == found.integer_macs == RESIDUAL_MACS
    assert found.integer_mac_share == 1.0
    assert found.convs == 4
    assert found.float_ops == 0
    assert found.conversions_inside == 0
    assert found.float_mac_modules == ()
    assert found.nodes == sum(found.ops.values())
    if format is Format.ONNX:
        assert found.accelerated_share is None
    else:
        assert (found.partitions, found.accelerated_share, found.fallback_modules) == (1, 1.0, ())


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("format", list(Format))
def test_float_file_is_float_throughout(format: Format, precision: Precision, emitted: Emitted) -> None:
    found = inspect(emitted("residual", format, precision).path)
    assert found.macs == RESIDUAL_MACS
    assert found.integer_macs == found.integer_ops == 0
    assert found.integer_mac_share == 0.0
    assert "group" in found.float_mac_modules


@pytest.mark.parametrize("format", list(Format))
def test_damaged_files_are_refused_or_read(format: Format, emitted: Emitted, tmp_path: Path) -> None:
    data = emitted("residual", format).path.read_bytes()
    generator = random.Random(1)
    for size in (0, 3, 40, len(data) // 2):
        path = tmp_path / f"short{format.suffix}"
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError):
            inspect(path)
    for number in range(3):
        damaged = bytearray(data)
        for _ in range(40):
            damaged[generator.randrange(8, len(data))] = generator.randrange(256)
        path = tmp_path / f"damaged_{number}{format.suffix}"
        path.write_bytes(damaged)
        # Some damage cannot be noticed; what is noticed is refused with an error of ours.
        with contextlib.suppress(ArtifactError, RuntimeFailure):
            assert inspect(path).nodes >= 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no model")
    with pytest.raises(ArtifactError):
        inspect(path)
    with pytest.raises(ArtifactError):
        inspect(tmp_path / "missing.onnx")


def test_weights_in_a_file_beside_it(emitted: Emitted, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = onnx.load(emitted("residual", Format.ONNX).path)
    onnx.save_model(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=256)
    found = inspect(path)
    assert (found.macs, found.convs) == (RESIDUAL_MACS, 4)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ArtifactError, match="net"):
        inspect(path)


@pytest.mark.parametrize(("format", "layer"), [(Format.ONNX, "2"), (Format.TFLITE, "2"), (Format.TFLITE, "4")])
def test_a_layer_left_in_float_has_its_name(format: Format, layer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    inputs = torch.randn(8, 3, 10, 10)
    program = quantize_model(module, inputs[:1], calibration=inputs, exclude=(layer,))
    found = inspect(export_model(program, format=format, out=tmp_path / "net").path)
    assert found.float_mac_modules == (layer,)
    assert layer in [text.partition(" ")[0] for text in found.float_modules]
