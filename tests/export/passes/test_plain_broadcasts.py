"""Values that are expanded before an op that expands them anyway, and vectors of length one, in TFLite files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.plain_broadcasts import PLAIN_BROADCASTS

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions and a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.first(x)))
        return y


def _gated(y: Tensor) -> Tensor:
    return y * torch.sigmoid(y.mean((2, 3), keepdim=True)).expand_as(y)


def _both(y: Tensor) -> Tensor:
    mean = y.mean((2, 3), keepdim=True)
    return mean.expand_as(y) + mean.square().expand_as(y)


@pytest.mark.parametrize(("function", "left"), [(_gated, 0), (F.normalize, 0), (_both, 2)])
def test_expansions_that_make_the_shape_stay(function: Callable[[Tensor], Tensor], left: int) -> None:
    net = Between(function).eval()
    graph = capture(net, X[:1]).graph
    add_values(graph, (X[:1],))
    found, _ = run_passes(graph, (PLAIN_BROADCASTS,))
    assert sum(node.target is torch.ops.aten.expand.default for node in found.graph.nodes) == left
    with torch.no_grad():
        torch.testing.assert_close(found(X[:1])[0], net(X[:1]))


def _over_the_norm(y: Tensor) -> Tensor:
    return y / (y.norm(dim=1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("function", "precision"),
    [
        (F.normalize, "fp32"),
        (_over_the_norm, "int8"),
        *(
            pytest.param(function, precision, marks=pytest.mark.slow)
            for function, precision in (
                (F.normalize, "int8"),
                (F.normalize, "int16x8"),
                (_over_the_norm, "int16x8"),
                (_gated, "int8"),
                (_gated, "int16x8"),
            )
        ),
    ],
)
def test_the_runtime_takes_the_file(function: Callable[[Tensor], Tensor], precision: str, tmp_path: Path) -> None:
    net = Between(function).eval()
    data = None if precision == "fp32" else X
    artifact = edgefold.export_model(
        net, X[:1], format="tflite", precision=precision, calibration=data, timing=False, out=tmp_path / "net.tflite"
    )
    (found,) = edgefold.run(artifact, [X.numpy()])
    expected = net(X).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 if data is None else 0.05 * np.abs(expected).max())
