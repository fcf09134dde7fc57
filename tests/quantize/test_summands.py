"""Summands that are tiny beside their sum keep a scale that runtimes' integer additions take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.inspect import inspect

LIMIT = 2.0**-10  # of XNNPACK


class Residual(nn.Module):
    """Two blocks whose branches are scaled by ``scale``; the last branch has a second reader if ``shared``."""

    def __init__(self, scale: float, *, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)])
        self.shared = shared
        with torch.no_grad():
            for value in self.blocks.parameters():
                value.mul_(scale)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        branch = x
        for block in self.blocks:
            branch = block(x).relu()
            x = x + branch
        return (x, branch.amax((2, 3))) if self.shared else x


@pytest.fixture(scope="module")
def samples() -> list[Tensor]:
    return [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def ratios(net: nn.Module, samples: list[Tensor]) -> list[float]:
    """Of the scales of the branches and of the sums, in the order of the network."""
    made = edgefold.quantize_model(net.eval(), samples[0], calibration=samples)
    nodes = {node.name: node for node in made.program.graph.graph.nodes}
    found = []
    for node in nodes.values():
        if node.target is torch.ops.aten.add.Tensor:
            scales = [made.table.activations[one.name].scale for one in node.all_input_nodes]
            found.append(min(scales) / made.table.activations[node.name].scale)
    return found


def test_a_tiny_branch_has_a_coarser_scale_and_a_usual_one_keeps_its_own(samples: list[Tensor]) -> None:
    tiny, usual = ratios(Residual(1e-6), samples), ratios(Residual(0.3), samples)
    assert [LIMIT < ratio <= 4 * LIMIT for ratio in tiny] == [True, True]
    assert [ratio > 0.02 for ratio in usual] == [True, True]


def test_a_branch_that_something_else_reads_keeps_its_scale(samples: list[Tensor]) -> None:
    first, last = ratios(Residual(1e-6, shared=True), samples)
    assert first > LIMIT > last


def test_nothing_is_lost_and_litert_adds_in_its_delegate(samples: list[Tensor], tmp_path: Path) -> None:
    net = Residual(1e-6).eval()
    made = edgefold.quantize_model(net, samples[0], calibration=samples)
    artifact = edgefold.export_model(made, format=Format.TFLITE, out=tmp_path / "net.tflite", timing=False)
    assert artifact.precision is Precision.INT8
    found = inspect(artifact.path)
    assert (found.partitions, found.fallback_modules) == (1, ())
    (output,) = edgefold.run(artifact, [samples[0].numpy()])
    with torch.no_grad():
        exact = net(samples[0])
    noise = (torch.from_numpy(output) - exact).square().sum()
    assert 10 * torch.log10(exact.square().sum() / noise) > 35
