"""Functions of one value: a table of 256 integers in ExecuTorch, and ops that the delegates have for softplus and its kin."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.inspect import inspect
from edgefold.export.passes.plain_softplus import plain_softplus
from edgefold.export.verify import reference_outputs

IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2
TABLES = (
    F.gelu,
    lambda x: F.leaky_relu(x, 0.1),
    torch.abs,
    torch.square,
    torch.sin,
    torch.exp,
    F.hardswish,
    torch.sigmoid,
    torch.tanh,
)
SOFT = (F.softplus, lambda x: F.softplus(x, beta=2.0), F.logsigmoid, F.mish)


class Branches(nn.Module):
    """Each function between two convolutions of its own."""

    def __init__(self, functions: tuple[object, ...], groups: int = 4) -> None:
        super().__init__()
        self.functions = functions
        self.first = nn.ModuleList(nn.Conv2d(3, groups, 1) for _ in functions)
        self.last = nn.ModuleList(nn.Conv2d(groups, 2, 1) for _ in functions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        branches = zip(self.functions, self.first, self.last, strict=True)
        return tuple(last(function(first(x))) for function, first, last in branches)  # type: ignore[operator]  # any


class Function(nn.Module):
    """One function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x)  # type: ignore[operator]  # any
        return y


def test_executorch_looks_functions_up_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = edgefold.quantize_model(Branches(TABLES).eval(), IMAGES[:1], calibration=IMAGES, observer="minmax")
    artifact = edgefold.export_model(quantized, format="executorch", timing=False, out=tmp_path / "net.pte")
    found = inspect(artifact.path)
    assert (found.float_ops, found.conversions_inside, found.partitions) == (0, 0, 1)
    pairs = zip(edgefold.run(artifact, [IMAGES[:1].numpy()]), reference_outputs(quantized, IMAGES[:1]), strict=True)
    errors = np.stack([np.abs(outputs - expected) / np.diff(np.unique(expected)).min() for outputs, expected in pairs])
    assert errors.max() < 2.01  # one entry of exp's table is a step off, and a convolution follows
    assert np.mean(errors > 0.5) < 0.02


@pytest.mark.parametrize("function", SOFT, ids=["softplus", "beta", "log-sigmoid", "mish"])
def test_softplus_and_its_kin_are_the_same_in_other_ops(function: object) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4001, dtype=torch.float64), torch.tensor([-1e4, -0.0, 1e4])])
    graph = torch.export.export(Function(function), (x,)).module()
    plain, modified = plain_softplus(graph)
    assert modified
    assert not plain_softplus(plain)[1]
    torch.testing.assert_close(plain(x), graph(x), rtol=0, atol=3e-9)


def test_a_softplus_with_a_low_threshold_stays() -> None:
    graph = torch.export.export(Function(lambda x: F.softplus(x, threshold=1.0)), (torch.zeros(3),)).module()
    assert not plain_softplus(graph)[1]


@pytest.mark.parametrize("form", [Format.TFLITE, Format.EXECUTORCH])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_softplus_and_its_kin_are_in_the_delegate(form: Format, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Branches(SOFT).eval()
    calibration = IMAGES if precision == "int8" else None
    artifact = edgefold.export_model(
        net,
        IMAGES[:1],
        format=form,
        precision=precision,
        calibration=calibration,
        timing=False,
        out=tmp_path / f"net{form.suffix}",
    )
    assert inspect(artifact.path).partitions == 1
    with torch.no_grad():
        exact = [output.numpy() for output in net(IMAGES[:1])]
    for outputs, expected in zip(edgefold.run(artifact, [IMAGES[:1].numpy()]), exact, strict=True):
        error = math.sqrt(np.square(outputs - expected).mean() / np.square(expected).mean())
        assert error < (1e-5 if precision == "fp32" else 0.05)
