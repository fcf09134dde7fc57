"""Wider channels: the same numbers, and only where every op that holds them allows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.lower import lower
from edgefold.export.lower.nodes import record_values
from edgefold.export.lower.widen import widen
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.calibrate import attach, calibrate
from tests.export.lower.test_random_graphs import SIZE, RandomNet, recipe


class Mobile(nn.Module):
    """What mobile networks have: 12 channels, expanded to 20, gated, added, joined with others, pooled and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(12, 20, 1)
        self.depth = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.squeeze, self.excite = nn.Conv2d(20, 5, 1), nn.Conv2d(5, 20, 1)
        self.project = nn.Conv2d(20, 12, 1)
        self.act = nn.PReLU(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.depth(F.relu(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.cat([x + self.project(y), F.max_pool2d(x, 3, 1, 1)], 1)
        result: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(self.act(x), 1), 1))
        return result


def lowered(module: nn.Module, x: Tensor, precision: Precision = Precision.FP32) -> LoweredProgram:
    """The module for ONNX; with INT8 calibrated on ``x``."""
    program = capture(module.eval(), x)
    if precision is Precision.INT8:
        graph = attach(program.graph, calibrate(program.graph, [(x,)], observer="minmax"))
        program = Program(graph, program.example_inputs, program.input_names, program.output_names)
    return lower(program, format=Format.ONNX, precision=precision, lowering="keep")


def channels(program: LoweredProgram) -> list[tuple[int, int, int]]:
    """Input channels, output channels and groups of each convolution."""
    graph = program.program.graph
    record_values(graph, program.program.example_inputs)
    convs = [conv for conv in map(Conv.of, graph.graph.nodes) if conv is not None]
    return [(conv.in_channels, conv.out_channels, conv.groups) for conv in convs]


def test_a_mobile_network_is_wider_and_computes_the_same() -> None:
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    net = lowered(Mobile().double(), x)
    wide = widen(net)
    assert (wide.plan.wide, net.plan.wide) == (True, False)
    # The squeezed channels have one position and stay; so do the three of the input.
    assert channels(wide) == [(3, 16, 1), (16, 32, 1), (32, 32, 32), (32, 5, 1), (5, 32, 1), (32, 16, 1)]
    torch.testing.assert_close(wide.program.graph(x), net.program.graph(x), rtol=1e-12, atol=1e-12)


def test_integers_are_the_same_bit_by_bit_in_onnxruntime(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 12, 12)
    net = lowered(Mobile(), x, Precision.INT8)
    outputs = []
    for name, program in (("narrow", net), ("wide", widen(net))):
        path = get_emitter(Format.ONNX).emit(program, EmitOptions(), tmp_path / f"{name}.onnx").path
        session = onnxruntime.InferenceSession(path)
        outputs.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    weights = [tuple(one.dims) for one in onnx.load(tmp_path / "wide.onnx").graph.initializer]
    assert (32, 1, 3, 3) in weights
    assert (10, 32) in weights or (32, 10) in weights
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.ptp(outputs[0]) > 0


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().mean((2, 3), keepdim=True)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :6] + x[:, 6:]


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((0, 2, 3)).relu()[:, None, None]  # a tensor with no axis of channels


@pytest.mark.parametrize(
    "inner",
    [
        Divided(),
        Gated(),
        Halved(),
        nn.Softmax(1),
        nn.LayerNorm([12, 8, 8]),
        nn.Conv2d(12, 12, 3, padding=1, groups=4),
        nn.Conv2d(12, 24, 3, padding=1, groups=12),
        nn.Flatten(),
        nn.PixelShuffle(2),
        nn.Identity(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_an_op_that_counts_channels_keeps_them(inner: nn.Module) -> None:
    x = torch.randn(1, 3, 8, 8)
    net = lowered(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), inner), x)
    assert widen(net) is net


class Tokens(nn.Module):
    """A linear layer whose features stand behind the pixels, which are no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1)
        self.mix, self.head = nn.Linear(12, 20), nn.Linear(20, 10)

        self.weights = nn.Parameter(torch.rand(20, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(F.relu(self.stem(x)))
        tokens = F.relu(self.mix(x.flatten(2).transpose(1, 2)))
        result: Tensor = self.head((tokens * (tokens @ self.weights)).mean(1))
        return result


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_features_behind_tokens_stay(precision: Precision) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 9, 9)
    narrow = lowered(Tokens(), x, precision)
    wide = widen(narrow)
    assert wide is not narrow
    with torch.no_grad():
        torch.testing.assert_close(wide.program.graph(x)[0], narrow.program.graph(x)[0])


@pytest.mark.parametrize("size", [8, 16, 32])
def test_whole_and_half_steps_stay(size: int) -> None:
    x = torch.randn(1, 3, 8, 8)
    net = lowered(nn.Sequential(nn.Conv2d(3, size, 3), nn.ReLU(), nn.Conv2d(size, 4, 3)), x)
    assert widen(net) is net


def check(steps: tuple[list[tuple[str, int, int]], list[tuple[str, int]]], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(1, 8, SIZE, SIZE, dtype=torch.float64)
    net = lowered(RandomNet(*steps).double(), x)
    wide = widen(net, 12)  # of which 8, 16 and 24, the channels of these networks, are no multiples
    for one, two in zip(net.program.graph(x), wide.program.graph(x), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-8)
    assert (wide is not net) == wide.plan.wide


@given(recipe, st.integers(0, 2**31))
@settings(max_examples=6)
def test_a_sample_of_graphs(steps: tuple[list[tuple[str, int, int]], list[tuple[str, int]]], seed: int) -> None:
    check(steps, seed)


@pytest.mark.slow
@given(recipe, st.integers(0, 2**31))
@settings(max_examples=150)
def test_any_graph(steps: tuple[list[tuple[str, int, int]], list[tuple[str, int]]], seed: int) -> None:
    check(steps, seed)
