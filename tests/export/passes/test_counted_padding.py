"""Average pooling that counts its padding is in ExecuTorch's delegate, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgefold
from edgefold.export.inspect import inspect
from edgefold.export.passes.counted_padding import counted_padding

OPTIONS = (
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": 1, "padding": (1, 0)},
    {"kernel_size": 3, "padding": 1, "divisor_override": 9},
)
OTHERS = (
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "padding": 1, "divisor_override": 8},
)
IMAGES = torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def graph_of(options: dict[str, Any]) -> Any:
    return torch.export.export(nn.AvgPool2d(**options), (IMAGES,)).module()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_numbers_stay(options: dict[str, Any]) -> None:
    graph = graph_of(options)
    after, modified = counted_padding(graph)
    assert modified
    assert not counted_padding(after)[1]
    torch.testing.assert_close(after(IMAGES), graph(IMAGES), rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", OTHERS)
def test_others_stay_as_they_are(options: dict[str, Any]) -> None:
    assert not counted_padding(graph_of(options))[1]


def test_it_is_in_the_delegate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(**OPTIONS[0]), nn.Conv2d(8, 4, 1)).eval()  # type: ignore[arg-type]  # ints
    image = IMAGES[:1].float()
    artifact = edgefold.export_model(net, image, format="executorch", timing=False, out=tmp_path / "net.pte")
    found = inspect(artifact.path)
    assert (found.partitions, found.fallback_modules) == (1, ())
    with torch.no_grad():
        expected = net(image).numpy()
    np.testing.assert_allclose(edgefold.run(artifact, [image.numpy()])[0], expected, atol=1e-5)
