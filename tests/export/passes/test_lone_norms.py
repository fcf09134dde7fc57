"""BatchNorms beside a branch, or after a concatenation: integer convolutions in all formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgefold.artifact import Format
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.inspect import inspect
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.lone_norms import LONE_NORMS
from edgefold.pipeline import export_model, quantize_model
from edgefold.runtime import run


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm with statistics as after training."""
    layer = nn.BatchNorm2d(channels)
    for value, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_mean, -1.0), (layer.running_var, 0.5)):
        assert value is not None
        nn.init.uniform_(value, low, low + 1)
    return layer


class PreActivation(nn.Module):
    """The stem's values go through a BatchNorm, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 8, H, W)."""
        x = self.stem(x)
        return self.conv(torch.relu(self.norm(x))) + x


class Concatenated(PreActivation):
    """A dense block: the BatchNorm comes after a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.head = norm(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4, H, W)."""
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.last(torch.cat([x, torch.relu(self.conv(x))], 1))))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("make", [PreActivation, Concatenated])
def test_a_lone_norm_is_an_integer_convolution(make: Callable[[], nn.Module], format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = make().eval(), torch.randn(1, 3, 12, 12)
    quantized = quantize_model(module, x, calibration=[torch.randn(1, 3, 12, 12) for _ in range(8)])
    path = tmp_path / f"model{format.suffix}"
    export_model(quantized, x, format=format, out=path, timing=False)
    with torch.no_grad():
        expected = module(x)
    off = torch.from_numpy(run(path, x.numpy())[0]) - expected
    assert 10 * float(torch.log10(expected.square().sum() / off.square().sum())) > 30
    found = inspect(path)
    assert (found.float_ops, found.conversions_inside, found.integer_mac_share) == (0, 0, 1.0)


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 6, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_convolution_is_the_norm(shape: tuple[int, ...], *, affine: bool) -> None:
    torch.manual_seed(0)
    module = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(6, affine=affine).eval()
    module.load_state_dict({**module.state_dict(), **{k: v for k, v in norm(6).state_dict().items() if k in module.state_dict()}})
    graph, changed = rewritten(module, torch.randn(shape))
    assert changed
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == [f"aten.conv{len(shape) - 2}d.default"]
    x = torch.randn(shape)
    torch.testing.assert_close(graph(x)[0].double(), module.double()(x.double()), rtol=1e-6, atol=1e-6)


def test_a_norm_of_rows_stays() -> None:
    assert not rewritten(nn.BatchNorm1d(6).eval(), torch.randn(2, 6))[1]


def rewritten(module: nn.Module, x: Tensor) -> tuple[GraphModule, bool]:
    """The graph after the pass."""
    graph = capture(module, x).graph
    add_values(graph, (x,))
    return run_passes(graph, (LONE_NORMS,))
