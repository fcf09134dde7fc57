"""Constants that are parts of larger tensors are written as they are, in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format


class Halves(nn.Module):
    """A residual block whose last convolution has two groups with weights of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 1)
        self.narrow = nn.Conv2d(64, 16, 1, groups=2)
        with torch.no_grad():
            self.narrow.weight[:8] *= 4
            self.narrow.bias.add_(torch.arange(16) / 8)  # type: ignore[union-attr]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = x + self.narrow(self.wide(x).relu())
        return y


class Views(nn.Module):
    """A convolution whose weight and bias are parts of larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        weights, biases = torch.randn(8, 3, 3, 3), torch.randn(8)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.weight, self.conv.bias = nn.Parameter(weights[4:]), nn.Parameter(biases[4:])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


FORMATS = [Format.ONNX, Format.TFLITE, Format.EXECUTORCH]


@pytest.fixture(scope="module")
def samples() -> list[Tensor]:
    return [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.mark.parametrize("format", FORMATS)
def test_groups_written_one_by_one_in_integers(format: Format, samples: list[Tensor], tmp_path: Path) -> None:
    made = edgefold.quantize_model(Halves().eval(), samples[0], calibration=samples)
    out = tmp_path / f"net{format.suffix}"
    artifact = edgefold.export_model(made, format=format, lowering="split", out=out, timing=False)
    (parity,) = edgefold.verify(artifact, made, torch.cat(samples)).outputs
    assert parity.max_steps is not None
    assert parity.max_steps <= 1


@pytest.mark.parametrize("net", [Halves, Views])
@pytest.mark.parametrize("format", FORMATS)
def test_in_floats(net: type[nn.Module], format: Format, samples: list[Tensor], tmp_path: Path) -> None:
    module, out = net().eval(), tmp_path / f"net{format.suffix}"
    artifact = edgefold.export_model(module, samples[0], format=format, lowering="split", out=out, timing=False)
    assert edgefold.verify(artifact, module, torch.cat(samples)).passed
