"""Large depthwise convolutions by rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.drift import measure_drift
from edgefold.export.inspect import inspect
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.lower import lower
from edgefold.export.lower.nodes import record_values
from edgefold.export.lower.rows import MAX_TAPS, row_branches, row_parts
from edgefold.export.plan import LoweringPlan, NumericClass
from edgefold.export.program import Program, QuantizedProgram
from edgefold.pipeline import lower_model


def net(kernel: tuple[int, int], channels: int = 6, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, groups=channels, **options), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def quantized() -> QuantizedProgram:
    """One layer of 7x7."""
    module, samples = net((7, 7), padding=3), [torch.randn(1, 6, 12, 12) for _ in range(4)]
    return edgefold.quantize_model(module, samples[0], calibration=samples)


def convolutions(program: Program) -> list[Conv]:
    record_values(program.graph, program.example_inputs)
    return [conv for conv in map(Conv.of, program.graph.graph.nodes) if conv is not None]


@given(st.integers(1, 31), st.integers(1, 31))
def test_parts_hold_every_row_once_and_few_taps(height: int, width: int) -> None:
    parts = row_parts((height, width))
    if not parts:
        assert height * width <= MAX_TAPS or 2 * width > MAX_TAPS
        return
    assert sorted(row for rows in parts for row in rows) == list(range(height))
    for rows in parts:
        assert len(rows) * width <= MAX_TAPS
        assert rows[0] + rows[-1] == height - 1
        assert len({after - row for row, after in itertools.pairwise(rows)}) <= 1


@pytest.mark.parametrize("format", [Format.TFLITE, Format.EXECUTORCH])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((7, 7), {"padding": 3}),
        ((7, 7), {"padding": 3, "stride": 2, "bias": False}),
        ((9, 5), {"padding": (4, 1)}),
        ((6, 6), {"padding": 3}),
        ((11, 11), {"padding": 5}),
        ((7, 7), {"padding": (6, 0), "dilation": (2, 1)}),
        ((7, 7), {"padding": 4}),
    ],
)
def test_the_sum_of_the_parts_is_the_convolution(kernel: tuple[int, int], options: dict[str, Any], format: Format) -> None:
    module, x = net(kernel, **options).double(), torch.randn(2, 6, 17, 15, dtype=torch.float64)
    lowered = lower(capture(module, x), format=format, precision=Precision.FP32)
    parts = convolutions(lowered.program)
    assert len(parts) == len(row_parts(kernel)) > 1
    torch.testing.assert_close(lowered.program.graph(x)[0], module(x), rtol=1e-12, atol=1e-12)
    assert f"{len(parts)} convolutions" in lowered.plan.layers[0].reason


@pytest.mark.parametrize(
    ("module", "format"),
    [
        (net((7, 7), padding=3), Format.ONNX),
        (net((5, 5), padding=2), Format.TFLITE),
        (net((7, 7)), Format.TFLITE),  # without padding the parts would read elsewhere
        (net((3, 17), padding=(1, 8)), Format.TFLITE),
        (nn.Sequential(nn.Conv2d(6, 6, 7, padding=3, groups=3), nn.ReLU()).eval(), Format.TFLITE),
        (nn.Sequential(nn.Conv2d(6, 12, 7, padding=3, groups=6), nn.ReLU()).eval(), Format.EXECUTORCH),
    ],
)
def test_others_stay_whole(module: nn.Module, format: Format) -> None:
    x = torch.randn(1, 6, 20, 20)
    lowered = lower(capture(module, x), format=format, precision=Precision.FP32, lowering="keep")
    assert len(convolutions(lowered.program)) == 1


def test_formats_that_agree_compute_it_whole(quantized: QuantizedProgram) -> None:
    for format in Format:
        lowered = lower_model(quantized, format=format, agree=True)
        assert len(convolutions(lowered.program)) == 1
        assert lowered.plan.layers[0].chosen.numeric_class is NumericClass.FUSED


def test_one_after_the_other() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Conv2d(6, 6, 7, padding=3, groups=6) for _ in range(2))).eval()
    x = torch.randn(1, 6, 12, 12)
    lowered = lower(capture(module, x), format=Format.TFLITE, precision=Precision.FP32)
    assert len(convolutions(lowered.program)) == 6
    torch.testing.assert_close(lowered.program.graph(x)[0], module(x))


def test_drift_is_that_of_the_files(quantized: QuantizedProgram) -> None:
    formats = (Format.ONNX, Format.TFLITE)
    for agree in (False, True):
        plans = {format: lower_model(quantized, format=format, agree=agree).plan for format in formats}
        found = measure_drift(quantized, torch.randn(1, 6, 12, 12), formats=formats, plans=plans)
        assert any("branched" in row.cause for row in found.rows) is not agree


def test_branches_are_the_parts_and_the_sums_between_them() -> None:
    found = row_branches(torch.randn(6, 1, 9, 9), 6)
    assert list(found) == ["rows0", "rows1", "sum1", "rows2", "sum2", "rows3", "sum3", "rows4"]
    assert torch.equal(found["rows0"][0] | found["rows1"][0], found["sum1"][0])
    assert torch.stack([taps for name, (taps, _) in found.items() if name.startswith("rows")]).sum(0).eq(1).all()
    assert [name for name, (_, biased) in found.items() if biased] == ["rows0", "sum1", "sum2", "sum3"]
    assert not row_branches(torch.randn(6, 2, 9, 9), 3)


@pytest.mark.parametrize("format", [Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=pytest.mark.slow)])
def test_integers_by_rows_run_in_the_runtime(format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)]
    module = nn.Sequential(*layers).eval()
    samples = [torch.randn(1, 3, 20, 20) for _ in range(8)]
    quantized = edgefold.quantize_model(module, samples[0], calibration=samples)
    artifact = edgefold.export_model(quantized, format=format, out=tmp_path / f"net{format.suffix}", timing=False)
    (output,) = edgefold.run(artifact, [samples[0].numpy()])
    exact = module(samples[0]).detach().numpy()
    assert 10 * np.log10((exact**2).sum() / ((exact - output) ** 2).sum()) > 30
    found = inspect(artifact.path)
    assert found.integer_mac_share == 1
    assert found.float_ops == 0


def test_the_plan_says_that_integers_are_rounded_between_the_parts(quantized: QuantizedProgram) -> None:
    program = quantized.program

    def plan(format: Format) -> LoweringPlan:
        return lower(program, format=format, precision=Precision.INT8).plan

    assert plan(Format.TFLITE).layers[0].chosen.numeric_class is NumericClass.BRANCHED
    assert plan(Format.ONNX).layers[0].chosen.numeric_class is NumericClass.FUSED
