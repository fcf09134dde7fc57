"""Transposed convolutions in TFLite files, with every padding, and with a dilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgefold
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.tflite_transposed_edges import TRANSPOSED_EDGES

ODD = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    ("options", "modified"),
    [
        (ODD, True),
        (ODD | {"bias": False}, True),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, True),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, True),
        ({"kernel_size": 5, "stride": 3, "padding": 1, "output_padding": 2}, True),
        (ODD | {"groups": 2, "dilation": 2}, True),
        ({"kernel_size": 2, "stride": 2}, False),
        ({"kernel_size": 4, "stride": 2, "padding": 1}, False),
        ({"kernel_size": 3, "padding": 1}, False),
    ],
)
def test_the_numbers_stay(options: dict[str, Any], modified: bool, rank: int) -> None:
    kind: Any = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
    net = nn.Sequential(kind(4, 6, **options), nn.ReLU()).eval()
    x = torch.randn(2, 4, *(7, 5)[:rank])
    graph = capture(net, x).graph
    add_values(graph, (x,))
    found, changed = run_passes(graph, (TRANSPOSED_EDGES,))
    assert changed is modified
    with torch.no_grad():
        torch.testing.assert_close(found(x)[0], net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_file_computes_it(rank: int, tmp_path: Path) -> None:
    """LiteRT's converter failed at it (2-D), or wrote a file that its runtime refused (1-D)."""
    kind: Any = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
    net = nn.Sequential(kind(3, 4, **ODD), nn.ReLU()).eval()
    x = torch.randn(1, 3, *(7, 5)[:rank])
    artifact = edgefold.export_model(net, x, format="tflite", timing=False, out=tmp_path / "net.tflite")
    (found,) = edgefold.run(artifact, [x.numpy()])
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight-only", "int16x8"])
def test_it_stays_in_float_among_integers(scheme: str, tmp_path: Path) -> None:
    up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(8, 3, 9, 9)
    data = None if scheme in ("int8-dynamic", "int8-weight-only") else x
    program = edgefold.quantize_model(net, x[:1], scheme=scheme, exclude=("2",), calibration=data)
    artifact = edgefold.export_model(program, format="tflite", timing=False, out=tmp_path / "net.tflite")
    found, expected = edgefold.run(artifact, [x.numpy()])[0], net(x).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
