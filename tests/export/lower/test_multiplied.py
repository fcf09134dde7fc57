"""Depthwise convolutions of several outputs a channel, as several of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.inspect import inspect
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.lower import lower
from edgefold.export.lower.nodes import record_values
from edgefold.export.lower.rows import FORMATS, row_parts
from edgefold.export.program import LoweredProgram, QuantizedProgram
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import WEIGHT_SCALE


class Downsamples(nn.Module):
    """A convolution of several outputs a channel between two of 1x1; ``between`` is what follows it at once."""

    def __init__(self, between: nn.Module, *, channels: int = 8, count: int = 2, kernel: int = 3, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(3, channels, 1)
        self.down = nn.Conv2d(channels, channels * count, kernel, padding=kernel // 2, groups=channels, **options)
        self.between = between
        self.after = nn.Conv2d(channels * count, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.between(self.down(self.before(x).relu())))
        return y


def image(size: int = 12) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def lowered(module: nn.Module, x: Tensor, format: Format = Format.ONNX) -> LoweredProgram:
    return lower(capture(module.eval(), x), format=format, precision=Precision.FP32)


def convolutions(program: LoweredProgram) -> list[Conv]:
    graph = program.program.graph
    record_values(graph, program.program.example_inputs)
    return [conv for conv in map(Conv.of, graph.graph.nodes) if conv is not None]


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(2, 4),
    channels=st.sampled_from([8, 10]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    between=st.sampled_from([nn.Identity, nn.ReLU, nn.GELU, nn.Hardswish]),
    format=st.sampled_from(list(Format)),
)
def test_outputs_stay_and_nothing_is_gathered(
    count: int, channels: int, kernel: int, stride: int, bias: bool, between: type[nn.Module], format: Format
) -> None:
    net, x = Downsamples(between(), channels=channels, count=count, kernel=kernel, stride=stride, bias=bias).eval(), image()
    made = lowered(net, x, format)
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
        found = made.program.graph(x)[0]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    parts = [conv for conv in convolutions(made) if conv.groups > 1]
    assert [(conv.in_channels, conv.out_channels) for conv in parts] == [(channels, channels)] * count
    assert made.plan.gathers == 0
    assert not any(str(node.target).startswith("aten.index_select") for node in made.program.graph.graph.nodes)


def test_the_plan_has_one_entry_for_the_layer() -> None:
    plan = lowered(Downsamples(nn.ReLU()), image()).plan
    assert [layer.name for layer in plan.layers] == ["before", "down", "after"]
    assert plan.layers[1].reason.startswith("as 2 depthwise convolutions of its input")
    # 2 x 8 outputs of 3 x 3 taps at 12 x 12 places
    assert plan.layers[1].candidates[0].macs == 16 * 9 * 144


@pytest.mark.parametrize(("channels", "count"), [(4, 2), (8, 6)])
def test_few_channels_of_many_outputs_stay(channels: int, count: int) -> None:
    made = lowered(Downsamples(nn.ReLU(), channels=channels, count=count), image())
    assert [conv.out_channels for conv in convolutions(made) if conv.groups > 1] == [channels * count]


def test_a_layer_before_a_group_convolution_and_one_at_an_output() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(8, 16, 3, groups=8, padding=1)
            self.grouped = nn.Conv2d(16, 16, 3, groups=2, padding=1)
            self.last = nn.Conv2d(16, 48, 3, groups=16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.grouped(self.down(x)) + x.repeat(1, 2, 1, 1))
            return y

    torch.manual_seed(0)
    net, x = Ends().eval(), torch.randn(1, 8, 12, 12)
    made = lowered(net, x)
    assert len(convolutions(made)) == 2 + 1 + 3
    with torch.no_grad():
        assert torch.allclose(made.program.graph(x)[0], net(x), atol=1e-5)


@pytest.fixture(scope="module")
def quantized() -> tuple[nn.Module, list[Tensor], QuantizedProgram]:
    """A network with a layer of 7x7 of two outputs a channel, its calibration data, and its quantization."""
    net = Downsamples(nn.ReLU(), channels=16, kernel=7, stride=2).eval()
    samples = [torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    return net, samples, edgefold.quantize_model(net, samples[0], calibration=samples)


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=pytest.mark.slow)])
def test_integers_run_in_the_runtime(
    quantized: tuple[nn.Module, list[Tensor], QuantizedProgram], format: Format, tmp_path: Path
) -> None:
    net, samples, program = quantized
    made = lower(program.program, format=format, precision=Precision.INT8)
    scales = [conv.node.meta[WEIGHT_SCALE] for conv in convolutions(made) if conv.groups > 1]
    parts = 2 * len(row_parts((7, 7))) if format in FORMATS else 2
    assert [len(scale) for scale in scales] == [16] * parts
    artifact = edgefold.export_model(program, format=format, out=tmp_path / f"net{format.suffix}", timing=False)
    (output,) = edgefold.run(artifact, [samples[0].numpy()])
    exact = net(samples[0]).detach().numpy()
    assert 10 * np.log10((exact**2).sum() / ((exact - output) ** 2).sum()) > 25
    found = inspect(artifact.path)
    assert found.integer_mac_share == 1
    assert found.float_ops == 0


def test_integers_are_those_of_one_convolution(quantized: tuple[nn.Module, list[Tensor], QuantizedProgram]) -> None:
    _, samples, program = quantized
    split, whole = (
        insert_qdq(graph, fold_weights=True)
        for graph in (lower(program.program, format=Format.ONNX, precision=Precision.INT8).program.graph, program.program.graph)
    )
    step = program.table.activations["conv2d_2"].scale
    with torch.no_grad():
        for sample in samples:  # the last layer sums in another order, which may change a value that lies between two integers
            difference = (split(sample)[0] - whole(sample)[0]).abs()
            assert float(difference.max()) < 1.01 * step
            assert float((difference > 0).float().mean()) < 0.01
