"""Columns as channels in ONNX: the same integers, for every geometry, in torch and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.lower import columns as module
from edgefold.export.lower.columns import LANES, TILES, Kernel, columns
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.lower import lower
from edgefold.export.lower.nodes import record_values
from edgefold.export.passes.columns import Row
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.insert import insert_qdq


def lowered(net: nn.Module, x: Tensor, precision: Precision = Precision.INT8) -> LoweredProgram:
    """The network for ONNX, calibrated on ``x`` for INT8."""
    program = capture(net.eval(), x)
    if precision is Precision.INT8:
        graph = attach(program.graph, calibrate(program.graph, [(x,)], observer="minmax"))
        program = Program(graph, program.example_inputs, program.input_names, program.output_names)
    return lower(program, format=Format.ONNX, precision=precision, lowering="keep")


def forced(net: LoweredProgram) -> LoweredProgram:
    """Columns as channels wherever they can be, as many of them as possible."""
    with patch.object(module, "_cost", lambda kernel, row, rows: -1e6 * row.channels):
        return columns(net, TILES)


def outputs(net: LoweredProgram, x: Tensor) -> Tensor:
    """What the fake-quantized graph gives."""
    with torch.no_grad():
        result: Tensor = insert_qdq(net.program.graph, fold_weights=True)(x)[0]
    return result


def geometry(net: LoweredProgram) -> list[tuple[int, int, tuple[int, ...], int]]:
    """Input channels, output channels, kernel and groups of each convolution."""
    record_values(net.program.graph, net.program.example_inputs)
    convs = [conv for conv in map(Conv.of, net.program.graph.graph.nodes) if conv is not None]
    return [(conv.in_channels, conv.out_channels, conv.kernel, conv.groups) for conv in convs]


class Mobile(nn.Module):
    """A stem with a clip, a depthwise layer, a layer of two readers, and padding of one side as TensorFlow has it."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.stem = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point, self.other = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(self.pad(x)))
        x = torch.relu(self.depth(x))
        return self.point(x) + torch.relu(self.other(x))


GEOMETRY: dict[str, st.SearchStrategy[Any]] = {
    "channels": st.integers(1, 4),
    "outputs_": st.sampled_from([1, 5, 8]),
    "kernel": st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 5])),
    "stride": st.integers(1, 2),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
    "edges": st.tuples(*[st.integers(0, 2)] * 4),
    "depthwise": st.booleans(),
    "bias": st.booleans(),
    "seed": st.integers(0, 2**16),
}


def check(
    channels: int,
    outputs_: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    edges: tuple[int, int, int, int],
    depthwise: bool,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    groups = channels if depthwise else 1
    conv = nn.Conv2d(channels, channels if depthwise else outputs_, kernel, stride, padding, groups=groups, bias=bias)
    net = nn.Sequential(nn.ZeroPad2d(edges) if any(edges) else nn.Identity(), conv, nn.ReLU())
    x = torch.randn(1, channels, 9, 12)
    origin = lowered(net, x)
    made = forced(origin)
    width = (12 + edges[0] + edges[1] + 2 * padding[1] - kernel[1]) // stride + 1
    assert made.plan.columns == (width * stride == 12)
    assert (made is origin) != made.plan.columns
    assert torch.equal(outputs(made, x), outputs(origin, x))


@settings(deadline=None, max_examples=8)
@given(**GEOMETRY)
def test_every_geometry_gives_the_same_integers(**geometry: Any) -> None:
    check(**geometry)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(**GEOMETRY)
def test_every_geometry_gives_the_same_integers_in_more_cases(**geometry: Any) -> None:
    check(**geometry)


def test_a_network_computes_the_same_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    origin = lowered(Mobile(), x)
    made = forced(origin)
    assert (origin.plan.columns, made.plan.columns) == (False, True)
    assert torch.equal(outputs(made, x), outputs(origin, x))
    # All eight outputs of a row at once, from the row itself and, by the padding, its neighbours.
    assert geometry(made) == [
        (48, 64, (3, 2), 1),
        (64, 64, (3, 3), 1),
        (64, 96, (1, 1), 1),
        (64, 96, (3, 3), 1),
    ]
    results = []
    for name, each in (("origin", origin), ("made", made)):
        artifact = get_emitter(Format.ONNX).emit(each, EmitOptions(), tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert np.array_equal(*results)


def test_the_runtime_drops_the_permutations_and_no_pad_is_left(tmp_path: Path) -> None:
    made = forced(lowered(Mobile(), torch.randn(1, 3, 16, 16)))
    artifact = get_emitter(Format.ONNX).emit(made, EmitOptions(), tmp_path / "net.onnx")
    onnx.checker.check_model(artifact.path, full_check=True)  # shapes as well
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the optimized file is for this machine
    onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "Pad" not in kinds
    assert kinds.count("QLinearConv") == 4
    assert kinds.count("Transpose") <= 2  # at the ends of the network


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(33, 4, 3, 1, 1),  # many channels
        nn.Conv2d(4, 8, 3, 1, 1, groups=2),
        nn.Conv2d(3, 4, 3, 1, 2, dilation=2),
        nn.Conv2d(3, 4, 3),  # other columns than the image
        nn.Conv1d(3, 4, 3, 1, 1),
    ],
)
def test_what_does_not_fit_stays(net: nn.Conv2d) -> None:
    shape = (1, net.in_channels, *[16] * (net.weight.ndim - 2))
    origin = lowered(net, torch.randn(shape))
    assert forced(origin) is origin


def test_float_networks_stay() -> None:
    origin = lowered(nn.Conv2d(3, 8, 3, 2, 1), torch.randn(1, 3, 16, 16), Precision.FP32)
    assert forced(origin) is origin


@pytest.mark.parametrize("kernel", [TILES, LANES])
def test_a_stem_gains_and_a_layer_of_many_channels_does_not(kernel: Kernel) -> None:
    stem = Row(3, 8, 3, 2, 1, 160)
    assert (stem.best(lambda row: module._cost(kernel, row, 3)) or 1) > 1
    assert Row(32, 64, 1, 1, 0, 40).best(lambda row: module._cost(kernel, row, 1)) is None


def test_without_tiles_fewer_columns_gain() -> None:
    def best(kernel: Kernel) -> int:
        return Row(3, 16, 3, 2, 1, 160).best(lambda row: module._cost(kernel, row, 3)) or 1

    assert 1 < best(LANES) < best(TILES)
