"""Scores in 0…1 beside boxes of hundreds, in one output: each keeps its 8 bits, in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.errors import UsageError
from edgefold.export.inspect import inspect
from edgefold.export.program import QuantizedProgram
from edgefold.export.saved import load_quantized, save_quantized
from edgefold.export.verify import reference_outputs
from edgefold.quantize.scheme import JOINED_FLOAT

slow = pytest.mark.slow
Array = NDArray[np.float64]


class _Detector(nn.Module):
    """A detector's end, as YOLO's: boxes of up to hundreds of pixels and scores, side by side, then moved."""

    def __init__(self, moved: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.boxes, self.scores, self.moved = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1), moved
        with torch.no_grad():
            self.boxes.weight.mul_(400)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        found = torch.cat([torch.relu(self.boxes(y)), self.scores(y).sigmoid()], 1)
        return found.flatten(2).permute(0, 2, 1) if self.moved else found


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=(8, 8), mode="bilinear")


def _exact(images: Tensor) -> Array:
    with torch.no_grad():
        return _Detector().double()(images.double()).numpy()


def _db(exact: Array, found: NDArray[np.float32]) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


@pytest.fixture(scope="module")
def program(images: Tensor) -> QuantizedProgram:
    return edgefold.quantize_model(_Detector().eval(), images[:1], calibration=images)


def test_scores_gain_what_the_boxes_took(images: Tensor, program: QuantizedProgram) -> None:
    shared = edgefold.quantize_model(_Detector().eval(), images[:1], calibration=images, io="int8")
    assert "'scores' (its input 1) in float" in program.findings[0]
    assert "'scores' (its input 1) with larger values" in shared.findings[0]
    exact = _exact(images)
    before, after = (reference_outputs(each, images)[0] for each in (shared, program))
    assert _db(exact[..., 4:], before[..., 4:]) < 20
    assert _db(exact[..., 4:], after[..., 4:]) > 40
    assert _db(exact[..., :4], after[..., :4]) > _db(exact[..., :4], before[..., :4]) - 1


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=slow)])
def test_every_runtime_joins_the_same_numbers(format: Format, images: Tensor, program: QuantizedProgram, tmp_path: Path) -> None:
    artifact = edgefold.export_model(program, format=format, agree=True, timing=False, out=tmp_path / "net")
    report = edgefold.verify(artifact, program, images)
    assert (report.outputs[0].max_steps, report.outputs[0].share_different) == (0.0, 0.0)
    seen = inspect(artifact.path)
    assert seen.integer_macs == seen.macs
    assert seen.partitions in (None, 1)
    assert any("concat" in text.lower() for text in seen.float_modules)


@pytest.mark.parametrize("format", [pytest.param(format, marks=slow) for format in Format])
def test_joins_in_float_take_any_batch_and_layout(format: Format, images: Tensor, tmp_path: Path) -> None:
    net = _Detector(moved=False).eval()
    program = edgefold.quantize_model(net, images[:1], calibration=images)
    artifact = edgefold.export_model(
        program, format=format, layout="nhwc", dynamic_batch=True, timing=False, out=tmp_path / "net"
    )
    report = edgefold.verify(artifact, program, images)
    assert report.passed
    assert report.outputs[0].max_steps is not None
    assert report.outputs[0].max_steps <= 1


def test_integer_ends_join_in_integers(images: Tensor, program: QuantizedProgram, tmp_path: Path) -> None:
    net = _Detector().eval()
    artifact = edgefold.export_model(
        net, images[:1], format="onnx", precision="int8", io="int8", calibration=images, timing=False, out=tmp_path / "net"
    )
    assert artifact.outputs[0].dtype == "int8"
    with pytest.raises(UsageError, match=r"is joined in float.*quantize it with io='int8'"):
        edgefold.export_model(program, format="onnx", io="int8", timing=False, out=tmp_path / "other")


def test_a_kept_network_still_joins_in_float(program: QuantizedProgram, tmp_path: Path) -> None:
    save_quantized(program, tmp_path / "net")
    found = load_quantized(tmp_path / "net", program.plan)
    assert found.findings == program.findings
    nodes = zip(found.program.graph.graph.nodes, program.program.graph.graph.nodes, strict=True)
    marks = [(JOINED_FLOAT in one.meta, JOINED_FLOAT in other.meta) for one, other in nodes]
    assert all(one == other for one, other in marks)
    assert (True, True) in marks
