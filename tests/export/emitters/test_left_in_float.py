"""Layers that stay in float in an INT8 file: they compute with their float weights in every runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.inspect import inspect
from edgefold.quantize.insert import insert_qdq

Run = Callable[..., dict[str, NDArray[Any]]]


class Outliers(nn.Module):
    """Three layers, each with one weight a channel that makes an 8-bit scale useless for the others, and reads a zero."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.linear, self.head = nn.Linear(16, 16), nn.Linear(16, 10)
        self.activation = activation
        with torch.no_grad():
            for layer in (self.first, self.conv, self.last):
                layer.weight[0], layer.bias[0] = 0, 0  # type: ignore[index]  # there is one
            self.conv.weight[1:, 0, 0, 0] = 30
            self.up.weight[0, :, 0, 0] = 30
            self.linear.weight[:, 0] = 30

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.activation(self.up(self.activation(self.conv(x))))
        y: Tensor = self.head(self.activation(self.linear(torch.relu(self.last(x)).mean((2, 3)))))
        return y


CASES = [(Format.ONNX, nn.Identity), *((format, nn.ReLU) for format in Format)]


@pytest.mark.parametrize(("format", "activation"), CASES)
def test_no_runtime_quantizes_them_again(format: Format, activation: type[nn.Module], run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Outliers(activation()).eval()
    x = torch.randn(8, 3, 8, 8)
    program = edgefold.quantize_model(net, x[:1], calibration=x, exclude=("conv", "up", "linear"))
    path = edgefold.export_model(program, format=format, out=tmp_path / "net").path
    found = next(iter(run(path, {"x": x[:1].numpy()}).values()))
    with torch.no_grad():
        (expected,) = insert_qdq(program.program.graph, fold_weights=True)(x[:1])
    power, noise = expected.square().sum(), (torch.tensor(found) - expected).square().sum()
    assert 10 * torch.log10(power / noise) > 30
    inspection = inspect(path)
    assert inspection.macs - inspection.integer_macs == 16 * 16 * 64 * (9 + 4) + 16 * 16
