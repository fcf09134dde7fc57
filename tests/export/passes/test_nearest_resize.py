"""Nearest-neighbour resizing in TFLite: the rows and columns that torch takes, in LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.capture import capture
from edgefold.export.inspect import inspect
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.nearest_resize import NEAREST_RESIZE


class Resized(nn.Module):
    """A convolution and a resizing."""

    def __init__(self, dimensions: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1) if dimensions == 2 else nn.Conv1d(2, 3, 1)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(torch.relu(self.conv(x)), **self.options)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", [(5, 3), (7, 9), (4, 15), (2, 2), (3, 4)])
def test_the_pass_gives_what_the_op_does(size: tuple[int, int], mode: str) -> None:
    module, x = Resized(2, size=size, mode=mode).eval(), torch.randn(2, 2, 3, 7)
    program = capture(module, x)
    graph, modified = run_passes(program.graph, (NEAREST_RESIZE,))
    assert modified
    with torch.no_grad():
        assert torch.equal(graph(x)[0], module(x))


def test_whole_multiples_stay() -> None:
    program = capture(Resized(2, scale_factor=2.0, mode="nearest").eval(), torch.randn(1, 2, 3, 5))
    assert not run_passes(program.graph, (NEAREST_RESIZE,))[1]


@pytest.mark.parametrize(
    ("dimensions", "options"),
    [(2, {"size": (5, 7)}), (2, {"scale_factor": (1.7, 0.5)}), (1, {"size": 5}), (2, {"size": (3, 6), "mode": "nearest-exact"})],
)
def test_litert_takes_the_same_places(dimensions: int, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Resized(dimensions, **({"mode": "nearest"} | options)).eval()
    x = torch.randn(1, 2, *(2, 8)[-dimensions:])
    quantized = edgefold.quantize_model(module, x, calibration=[x])
    for name, source in (("fp32", module), ("int8", quantized)):
        path = tmp_path / f"{name}.tflite"
        edgefold.export_model(source, x, format=Format.TFLITE, timing=False, out=path)
        (found,) = edgefold.run(path, x.numpy())
        expected = module(x).detach().numpy()
        tolerance = 1e-5 if name == "fp32" else 0.02 * np.ptp(expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert inspect(path).conversions_inside == 0
