"""Average pooling in TFLite whose windows leave numbers out: real files in LiteRT against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.inspect import inspect
from edgefold.export.verify import reference_outputs

IMAGE = torch.randn(1, 3, 15, 19, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),  # as in ResNet-D, at an odd size
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(8, 4, 1),
    ).eval()


def test_windows_that_reach_over_the_end_in_float(net: nn.Module, tmp_path: Path) -> None:
    artifact = edgefold.export_model(net, IMAGE, format=Format.TFLITE, timing=False, out=tmp_path / "net")
    (found,) = edgefold.run(artifact, IMAGE.numpy())
    np.testing.assert_allclose(found, net(IMAGE).detach().numpy(), rtol=0, atol=1e-6)


def test_windows_that_reach_over_the_end_in_integers(net: nn.Module, tmp_path: Path) -> None:
    program = edgefold.quantize_model(net, IMAGE, calibration=[IMAGE], scheme="int8-full")
    artifact = edgefold.export_model(program, format=Format.TFLITE, timing=False, out=tmp_path / "net")
    (found,), (expected,) = edgefold.run(artifact, IMAGE.numpy()), reference_outputs(program, (IMAGE,), batch=1)
    step = artifact.outputs[0].scale
    assert step is not None
    # Pools round ties away from 0, the reference to even; a product after the rounding would be steps away.
    assert np.abs(found - expected).max() <= 2.01 * step
    exact = net(IMAGE).detach().numpy()
    assert 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum()) > 30
    assert inspect(artifact.path).float_ops == 0
