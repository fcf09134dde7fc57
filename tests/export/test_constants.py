"""The parts of a network that no input goes into are numbers in its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from edgefold.artifact import Format
from edgefold.export.constants import fold_constants
from edgefold.export.inspect import inspect
from edgefold.pipeline import export_model, quantize_model
from edgefold.runtime import run

aten = torch.ops.aten


class Encoded(nn.Module):
    """Positions that are counted over a mask, through a convolution (EdgeNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.project, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4, H, W)."""
        mask = ~torch.zeros(1, 1, *x.shape[2:]).to(torch.bool)
        places = mask.cumsum(2, dtype=torch.float32).sin() * mask.cumsum(3, dtype=torch.float32)
        return self.last(self.first(x) + self.project(places / places.max()))


@pytest.mark.parametrize("format", [Format.ONNX, Format.EXECUTORCH])
def test_positions_are_numbers_of_the_file(format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Encoded().eval(), torch.randn(1, 3, 12, 12)
    quantized = quantize_model(module, x, calibration=[torch.randn(1, 3, 12, 12) for _ in range(8)])
    path = tmp_path / f"model{format.suffix}"
    export_model(quantized, x, format=format, out=path, timing=False)
    found = inspect(path)
    assert found.float_ops <= 2  # the sum, and in ExecuTorch a copy of the numbers
    assert found.integer_mac_share == 1.0
    with torch.no_grad():
        expected = module(x)
    off = torch.from_numpy(run(path, x.numpy())[0]) - expected
    assert 10 * float(torch.log10(expected.square().sum() / off.square().sum())) > 30


@pytest.mark.parametrize("writes", [True, False])
def test_what_a_graph_writes_into_is_made_anew_in_each_call(*, writes: bool) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    buffer = graph.call_function(aten.zeros.default, ([2],))
    graph.output(graph.call_function(aten.add_.Tensor if writes else aten.add.Tensor, (buffer, x)))
    module = GraphModule(nn.Module(), graph)
    fold_constants(module, made=True)
    assert any(node.target is aten.zeros.default for node in module.graph.nodes) is writes
    module.recompile()
    assert torch.equal(module(torch.ones(2)), module(torch.ones(2)))
