"""Sums in ONNX files that agree with the other formats: XNNPACK's integers, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.passes.onnx_fixed_point_add import multipliers

IMAGES = torch.randn(32, 3, 48, 48, generator=torch.Generator().manual_seed(1))


class _Residual(nn.Module):
    """Two sums, the second of the first; both operands are rectified, so that no sum folds into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x)) + x
        return torch.relu(self.three(x)) + x


@pytest.mark.parametrize("agree", [True, False])
def test_onnxruntime_gives_the_integers_of_executorch(agree: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    quantized = edgefold.quantize_model(_Residual().eval(), IMAGES[:1], calibration=IMAGES)
    files = {
        format: edgefold.export_model(quantized, format=format, agree=agree, timing=False, out=tmp_path / f"net{format.suffix}")
        for format in (Format.ONNX, Format.EXECUTORCH)
    }
    first, second = (edgefold.run(file, IMAGES.numpy())[0] for file in files.values())
    assert np.array_equal(first, second) is agree
    ops = [node.op_type for node in onnx.load(files[Format.ONNX].path).graph.node]
    assert ops.count("Floor") == (2 if agree else 0)


def test_a_sum_with_a_constant_stays_one_and_gives_the_same_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.Hardswish()))).eval()
    quantized = edgefold.quantize_model(net, IMAGES[:1], calibration=IMAGES)
    files = [
        edgefold.export_model(quantized, format=format, agree=True, timing=False, out=tmp_path / f"net{format.suffix}")
        for format in (Format.ONNX, Format.EXECUTORCH)
    ]
    ops = [node.op_type for node in onnx.load(files[0].path).graph.node]
    assert (ops.count("Add"), ops.count("Floor")) == (4, 0)
    first, second = (edgefold.run(file, IMAGES.numpy())[0] for file in files)
    assert np.array_equal(first, second)


SCALES = st.floats(2.0**-12, 2.0**4, width=32)


@given(SCALES, SCALES, SCALES)
def test_multipliers_are_the_ratios_in_21_bits(first: float, second: float, result: float) -> None:
    one, two, shift = multipliers(np.float32(first), np.float32(second), np.float32(result))
    assert 2**20 <= max(one, two) <= 2**21
    for factor, scale in ((one, first), (two, second)):
        ratio = float(np.float32(scale) / np.float32(result))
        assert abs(factor * 2.0**-shift - ratio) <= 2.0 ** -(shift + 1)
