"""What is said of a float file that fails: how far torch's own float32 is off its float64."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgefold


class Steep(nn.Module):
    """Gives the sine of something so large that the last digits of a float32 decide."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.conv(x) * self.factor)


def off(criterion: str) -> float:
    found = re.search(r"torch's own float32 outputs are (\S+) off its float64 ones", criterion)
    assert found, criterion
    return float(found[1])


def test_a_network_that_blows_up_rounding_errors_is_told_from_a_wrong_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 12, 12)
    steep, tame = Steep(1e5).eval(), Steep(1.0).eval()

    report = edgefold.verify(edgefold.export_model(steep, x[:1], format="onnx", out=tmp_path / "steep"), steep, x)
    assert not report.passed
    with torch.no_grad():
        exact = Steep(1e5).double()(x.double())  # the same seed
        own = float((steep(x) - exact).abs().max() / (exact.max() - exact.min()))
    assert own > 1e-3
    assert off(report.criterion) == pytest.approx(own, rel=0.06)  # two digits are shown

    artifact = edgefold.export_model(tame, x[:1], format="onnx", out=tmp_path / "tame")
    report = edgefold.verify(artifact, tame, x)
    assert report.passed
    assert "float64" not in report.criterion
    tame.conv.weight.data[0] *= 1.5  # the file is no longer that of the network
    report = edgefold.verify(artifact, tame, x)
    assert not report.passed
    assert off(report.criterion) < 1e-6
