"""Splits of the channels in ExecuTorch: one partition, and the integers as they are."""

from __future__ import annotations

import operator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.inspect import inspect
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.splits_as_slices import SPLITS_AS_SLICES
from edgefold.export.verify import reference_outputs

IMAGE = torch.randn(1, 3, 14, 12, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Kernels of several sizes on parts of the channels (MixNet, arXiv:1907.09595), and a part that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 14, 1)
        self.parts = nn.ModuleList(nn.Conv2d(count, 4, size, padding=size // 2) for count, size in ((6, 3), (5, 5)))
        self.last = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second, _ = torch.split(torch.relu(self.stem(x)), [6, 5, 3], dim=1)
        left, right = torch.cat((self.parts[0](first).relu(), self.parts[1](second).relu()), 1).chunk(2, dim=-3)
        upper, lower = torch.split(torch.maximum(left, right), 7, dim=2)
        return self.last(upper + lower)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Mixed().eval()


def test_a_part_that_is_taken_twice() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = IMAGE
    halves = graph.call_function(torch.ops.aten.split.Tensor, (x, 7, 2))
    halves.meta["val"] = IMAGE.chunk(2, 2)
    first, again, last = (graph.call_function(operator.getitem, (halves, place)) for place in (0, 0, -1))
    both = graph.call_function(torch.ops.aten.add.Tensor, (first, again))
    graph.output((graph.call_function(torch.ops.aten.sub.Tensor, (both, last)),))
    result, modified = run_passes(torch.fx.GraphModule({}, graph), (SPLITS_AS_SLICES,))
    assert modified
    torch.testing.assert_close(result(IMAGE)[0], 2 * IMAGE[:, :, :7] - IMAGE[:, :, 7:])


def test_in_float(net: nn.Module, tmp_path: Path) -> None:
    artifact = edgefold.export_model(net, IMAGE, format=Format.EXECUTORCH, timing=False, out=tmp_path / "net")
    (found,) = edgefold.run(artifact, IMAGE.numpy())
    np.testing.assert_allclose(found, net(IMAGE).detach().numpy(), rtol=0, atol=1e-5)
    inspected = inspect(artifact.path)
    assert inspected.partitions == 1
    assert inspected.fallback_modules == ()


def test_in_integers(net: nn.Module, tmp_path: Path) -> None:
    program = edgefold.quantize_model(net, IMAGE, calibration=[IMAGE])
    artifact = edgefold.export_model(program, format=Format.EXECUTORCH, timing=False, out=tmp_path / "net")
    (found,), (expected,) = edgefold.run(artifact, IMAGE.numpy()), reference_outputs(program, (IMAGE,), batch=1)
    exact = net(IMAGE).detach().numpy()
    assert np.square(found - expected).sum() < 0.3 * np.square(exact - expected).sum()
    inspected = inspect(artifact.path)
    assert inspected.fallback_modules == ()
