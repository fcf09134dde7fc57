"""Sigmoids and the like that share an op with values outside their range, in all formats, against the float network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import edgefold
from edgefold.artifact import Format

slow = pytest.mark.slow
Run = Callable[..., dict[str, NDArray[Any]]]
Join = Callable[[Tensor, Tensor], Tensor]

JOINS: dict[str, Join] = {
    "concat": lambda p, q: torch.cat([torch.sigmoid(p), 20 * q], 1),
    "split": lambda p, q: torch.cat([torch.sigmoid(p).chunk(2, 1)[0], 20 * q], 1),
    "padding": lambda p, q: functional.pad(torch.sigmoid(p), (1, 1, 1, 1), value=4.0),
}


class _Joined(nn.Module):
    def __init__(self, join: Join) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scores, self.boxes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.join(self.scores(y), self.boxes(y))


def _samples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return [(functional.interpolate(torch.randn(1, 3, 3, 3), size=(8, 8), mode="bilinear"),) for _ in range(8)]


def _db(exact: NDArray[Any], found: NDArray[Any]) -> float:
    return float(10 * np.log10((exact.astype(np.float64) ** 2).sum() / ((exact.astype(np.float64) - found) ** 2).sum()))


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=slow)])
@pytest.mark.parametrize("name", ["concat", pytest.param("split", marks=slow), pytest.param("padding", marks=slow)])
def test_values_beside_a_sigmoid_keep_their_range(name: str, format: Format, run: Run, tmp_path: Path) -> None:
    module, samples = _Joined(JOINS[name]).eval(), _samples()
    # For integer ends, so that it joins in integers.
    program = edgefold.quantize_model(module, samples[0], calibration=samples, observer="minmax", io="int8")
    artifact = edgefold.export_model(program, format=format, timing=False, out=tmp_path / "joined")
    with torch.no_grad():
        exact = module(*samples[0]).numpy()
    found = run(artifact.path, {artifact.inputs[0].name: samples[0][0].numpy()})[artifact.outputs[0].name]
    assert _db(exact, found) > 30  # 8 bits; with the sigmoid's range for all it is 2


def test_a_file_of_integers_only_has_two_grids_for_a_sigmoid(tmp_path: Path) -> None:
    module, samples = _Joined(JOINS["concat"]).eval(), _samples()
    program = edgefold.quantize_model(module, samples[0], calibration=samples, scheme="int8-full", observer="minmax")
    edgefold.export_model(program, format="tflite", timing=False, out=tmp_path / "joined")  # it refuses conversions to float


def test_clipped_shares_are_those_of_the_values_that_are_joined() -> None:
    module, samples = _Joined(JOINS["concat"]).eval(), _samples()
    table = edgefold.quantize_model(module, samples[0], calibration=samples, observer="minmax", io="int8").table
    with torch.no_grad():
        most = max(float(module(*sample).abs().max()) for sample in samples)
    params = table.activations["cat"]
    low, high = (params.scale * (end - params.zero_point) for end in (params.qmin, params.qmax))
    assert max(-low, high) == pytest.approx(most, rel=0.02)
    assert table.activations["sigmoid"].scale == 1 / 256
