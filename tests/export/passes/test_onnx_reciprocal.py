"""Formats that agree quantize an input in one way: by the reciprocal of its scale, as XNNPACK does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.verify import reference_outputs
from edgefold.quantize.scheme import Q

SIDE = 16


@pytest.mark.parametrize("agree", [True, False])
def test_values_whose_quotient_and_product_round_apart(agree: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    images = torch.randn(16, 1, SIDE, SIDE)
    quantized = edgefold.quantize_model(net, images[:1], calibration=images)
    (scale,) = [np.float32(node.meta[Q].scale) for node in quantized.program.graph.graph.nodes if node.op == "placeholder"]
    halves = np.arange(-100.5, 100, dtype=np.float32) * scale
    near = np.concatenate([halves, np.nextafter(halves, np.float32(-9)), np.nextafter(halves, np.float32(9))])
    apart = near[np.rint(near / scale) != np.rint(near * (np.float32(1) / scale))]
    assert len(apart) > 3
    pixels = np.resize(apart, (1, 1, SIDE, SIDE))

    artifact = edgefold.export_model(quantized, format=Format.ONNX, agree=agree, timing=False, out=tmp_path / "net.onnx")
    (found,) = edgefold.run(artifact, pixels)
    (expected,) = reference_outputs(quantized, (torch.from_numpy(pixels),), batch=1)
    assert np.array_equal(found, expected) is agree
    assert ("Mul" in [node.op_type for node in onnx.load(artifact.path).graph.node]) is agree


def test_ends_of_integers_are_not_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    quantized = edgefold.quantize_model(nn.Conv2d(3, 4, 3).eval(), images[:1], calibration=images)
    file = edgefold.export_model(quantized, format=Format.ONNX, agree=True, io="int8", timing=False, out=tmp_path / "net.onnx")
    assert "Mul" not in [node.op_type for node in onnx.load(file.path).graph.node]
