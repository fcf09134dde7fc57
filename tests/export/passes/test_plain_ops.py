"""Arguments that converters drop or refuse, and constants before a minus or a division: in every format, float and INT8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgefold.artifact import Format
from edgefold.export.capture import capture
from edgefold.pipeline import export_model, quantize_model
from edgefold.runtime import run

_ATEN = torch.ops.aten


class Between(nn.Module):
    """A function of one value between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(torch.relu(self.first(x))))
        return y


def _overhanging(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5)


WRITTEN_OUT: list[Callable[[Tensor], Tensor]] = [
    lambda y: functional.avg_pool2d(y, 2, divisor_override=1),
    lambda y: functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False, divisor_override=7),
    _overhanging,
    lambda y: functional.avg_pool3d(y, (1, 2, 2), divisor_override=3),
    lambda y: torch.sub(y, torch.sigmoid(y), alpha=3),
    lambda y: torch.add(y, 2, alpha=3),
    lambda y: 1 - y,
    lambda y: torch.rsub(y, torch.sigmoid(y), alpha=2),
]


@pytest.mark.parametrize("function", WRITTEN_OUT)
def test_a_captured_graph_has_them_written_out(function: Callable[[Tensor], Tensor]) -> None:
    module, x = Between(function).double().eval(), torch.randn(1, 3, 9, 9, dtype=torch.float64)
    program = capture(module, x)
    torch.testing.assert_close(program.graph(x)[0], module(x), rtol=1e-12, atol=1e-12)
    for node in program.graph.graph.nodes:
        assert node.target not in (_ATEN.rsub.Scalar, _ATEN.rsub.Tensor)
        assert "alpha" not in node.kwargs
        if node.target in (_ATEN.avg_pool2d.default, _ATEN.avg_pool3d.default):
            assert len(node.args) < 7


def test_a_divisor_of_the_windows_own_size_costs_nothing() -> None:
    program = capture(Between(lambda y: functional.avg_pool2d(y, 2, divisor_override=4)).eval(), torch.randn(1, 3, 8, 8))
    assert not [node for node in program.graph.graph.nodes if node.target is _ATEN.mul.Tensor]


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=pytest.mark.slow)])
def test_all_of_it_is_right_in_a_float_file(format: Format, tmp_path: Path) -> None:
    def several(y: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(y, 2, divisor_override=1)
        return 1 - torch.sub(pooled, torch.sigmoid(_overhanging(y)[..., :4, :4]), alpha=3)

    _check(Between(several).eval(), format, tmp_path)


@pytest.mark.parametrize(
    "function",
    [pytest.param(lambda y: 1 - y, marks=pytest.mark.slow, id="minus"), pytest.param(lambda y: 2 / (y + 1), id="over")],
)
def test_a_constant_comes_first_in_a_tflite_file(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    _check(Between(function).eval(), Format.TFLITE, tmp_path)


def _check(module: nn.Module, format: Format, folder: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    artifact = export_model(module, x, format=format, out=folder / f"net{format.suffix}")
    expected = module.double()(x.double())
    torch.testing.assert_close(torch.from_numpy(run(artifact, x.numpy())[0]).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "format", [Format.ONNX, *(pytest.param(one, marks=pytest.mark.slow) for one in (Format.TFLITE, Format.EXECUTORCH))]
)
def test_a_pooling_with_a_divisor_stays_right_in_integers(format: Format, tmp_path: Path) -> None:
    module = Between(lambda y: 1 - functional.avg_pool2d(y, 2, divisor_override=1)).eval()
    inputs = functional.interpolate(torch.randn(32, 3, 4, 4), size=8, mode="bilinear")
    program = quantize_model(module, inputs[:1], calibration=inputs)
    artifact = export_model(program, format=format, out=tmp_path / f"net{format.suffix}")
    expected = module(inputs)
    noise = torch.from_numpy(run(artifact, inputs.numpy(), batch=1)[0]) - expected
    assert 10 * torch.log10(expected.square().sum() / noise.square().sum()) > 25
