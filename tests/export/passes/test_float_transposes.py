"""The channels of a float image move before it becomes integers: the same outputs, bit by bit, and ends that count as ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.emitters import executorch, tflite
from edgefold.export.inspect import inspect, read
from edgefold.export.inspectors.base import Kind
from edgefold.export.passes.infra import GraphPass

FORMATS = (Format.TFLITE, Format.EXECUTORCH)
MOVES = {Format.TFLITE: "TRANSPOSE", Format.EXECUTORCH: "XNNStaticTranspose"}


class Two(nn.Module):
    """Two convolutions that read the same image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 8, 3), nn.Conv2d(channels, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).mean((2, 3)) + self.two(x).mean((2, 3))


class Padded(nn.Module):
    """A padding before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(nn.functional.pad(x, (0, 1, 0, 1)))
        return y


class Shared(nn.Module):
    """An image that something else than convolutions reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(3 * 81, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + self.head(x.flatten(1))


def export(net: nn.Module, channels: int, form: Format, out: Path, **options: Any) -> Path:
    images = torch.randn(4, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    return edgefold.export_model(
        net, images[:1], format=form, precision="int8", calibration=images, timing=False, out=out, force=True, **options
    ).path


def float_moves(path: Path, form: Format) -> int:
    """Transpositions of floats at the file's input."""
    return sum(op.kind is Kind.MOVE and op.name == MOVES[form] for op in read(path).ops)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("channels", "moves"), [(1, 0), (3, 1), (8, 0)])
def test_few_channels_move_while_they_are_float(channels: int, moves: int, form: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(Two(channels).eval(), channels, form, tmp_path / f"net{form.suffix}")
    assert float_moves(path, form) == moves
    seen = inspect(path)
    assert (seen.float_ops, seen.conversions_inside, seen.integer_mac_share) == (0, 0, 1.0)


@pytest.mark.parametrize("form", FORMATS)
def test_outputs_are_the_same_bit_by_bit(form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, image = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), np.random.default_rng(0).standard_normal((1, 3, 9, 9), np.float32)
    moved = export(net, 3, form, tmp_path / f"moved{form.suffix}")
    found = edgefold.run(moved, image)[0]
    emitter = {Format.TFLITE: tflite, Format.EXECUTORCH: executorch}[form]
    monkeypatch.setattr(emitter, "FLOAT_TRANSPOSES", GraphPass("none", lambda graph: (graph, False)))
    plain = export(net, 3, form, tmp_path / f"plain{form.suffix}")
    assert float_moves(plain, form) == 0
    assert inspect(plain).ops[MOVES[form]] == inspect(moved).ops[MOVES[form]] == 2  # one for each end
    assert np.array_equal(found, edgefold.run(plain, image)[0])


@pytest.mark.parametrize("form", FORMATS)
def test_other_inputs_stay(form: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Two(3).eval()
    padded = export(Padded().eval(), 3, form, tmp_path / f"padded{form.suffix}")
    assert float_moves(padded, form) == (form is Format.TFLITE)  # ExecuTorch pads first
    assert inspect(padded).ops[MOVES[form]] == 2  # one for each end
    assert float_moves(export(Shared().eval(), 3, form, tmp_path / f"shared{form.suffix}"), form) == 0
    assert float_moves(export(net, 3, form, tmp_path / f"nhwc{form.suffix}", layout="nhwc"), form) == 0
    assert float_moves(export(net, 3, form, tmp_path / f"int8{form.suffix}", io="int8"), form) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_any_batch(form: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, images = Two(3).eval(), np.random.default_rng(0).standard_normal((3, 3, 9, 9), np.float32)
    path = export(net, 3, form, tmp_path / f"net{form.suffix}", dynamic_batch=True)
    assert float_moves(path, form) == 1
    together = edgefold.run(path, images)[0]
    alone = np.concatenate([edgefold.run(path, images[index : index + 1])[0] for index in range(3)])
    assert np.array_equal(together, alone)
