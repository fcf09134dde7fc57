"""Layers without any weight, in all formats: runtimes refuse scales that are far apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import edgefold
from edgefold.artifact import Format

Run = Callable[..., dict[str, NDArray[Any]]]


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("dead", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_layer_of_zeros_runs_in_every_format(dead: int, format: Format, run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, bias=False)).eval()
    nn.init.zeros_(module[dead].weight)  # type: ignore[arg-type]  # a convolution
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    program = edgefold.quantize_model(module, samples[0], calibration=samples, observer="minmax")
    artifact = edgefold.export_model(program, format=format, timing=False, out=tmp_path / "dead")
    found = run(artifact.path, {artifact.inputs[0].name: samples[0][0].numpy()})[artifact.outputs[0].name]
    np.testing.assert_array_equal(found, np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize("bounds", [(0.5, 2.0), pytest.param((None, -0.2), marks=pytest.mark.slow)])
def test_executorch_clips_without_zero(bounds: tuple[float | None, float], run: Run, tmp_path: Path) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.conv(x).clamp(*bounds))
            return y

    module, samples = Clipped().eval(), [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    program = edgefold.quantize_model(module, samples[0], calibration=samples, observer="minmax")
    artifact = edgefold.export_model(program, format="executorch", timing=False, out=tmp_path / "clipped")
    found = run(artifact.path, {artifact.inputs[0].name: samples[0][0].numpy()})[artifact.outputs[0].name]
    with torch.no_grad():
        exact = module(*samples[0]).numpy()
    assert np.square(exact - found).sum() < 1e-3 * np.square(exact).sum()
