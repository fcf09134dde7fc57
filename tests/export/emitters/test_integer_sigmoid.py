"""Sigmoid and tanh in ExecuTorch: 8-bit integers in and out, as in a table of the exact function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgefold


class _Curve(nn.Module):
    """A function of every integer of its input: the layer before it changes none."""

    def __init__(self, curve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.curve = nn.Conv2d(1, 1, 1, bias=False), curve
        with torch.no_grad():
            self.layer.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.curve(self.layer(x))


@pytest.mark.slow
@pytest.mark.parametrize(("curve", "scale", "zero_point"), [(torch.sigmoid, 1 / 256, -128), (torch.tanh, 1 / 128, 0)])
def test_every_integer_gives_that_of_the_exact_function(
    curve: Callable[[Tensor], Tensor], scale: float, zero_point: int, tmp_path: Path
) -> None:
    integers = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 16, 16)
    real = torch.from_numpy(integers.astype(np.float32)) / 16  # from -8 to 7.94
    program = edgefold.quantize_model(_Curve(curve).eval(), real, calibration=[real], scheme="int8-full", observer="minmax")
    artifact = edgefold.export_model(program, format="executorch", timing=False, out=tmp_path / "net")
    (found,) = edgefold.run(artifact, real.numpy())
    exact = np.clip(np.rint(curve(real.double()).numpy() / scale) + zero_point, -128, 127)
    assert np.abs(np.rint(found / scale) + zero_point - exact).max() <= 1
