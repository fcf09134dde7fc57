"""Columns as channels in TFLite: the same integers, in real files and as arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.passes.columns import Row
from edgefold.export.passes.tflite_model import TfliteModel, load
from edgefold.export.program import Program
from edgefold.quantize.calibrate import attach, calibrate


class Shared(nn.Module):
    """Two convolutions of one image, an add and a pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 1, 2)
        self.point = nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(F.relu(self.one(x) + self.two(x)))


def files(net: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Path]:
    """The INT8 file as it is, and with columns as channels."""
    program = capture(net.eval(), x)
    graph = attach(program.graph, calibrate(program.graph, [(x,)], observer="minmax"))
    program = Program(graph, program.example_inputs, program.input_names, program.output_names)
    lowered = lower(program, format=Format.TFLITE, precision=Precision.INT8, lowering="keep")
    wide = replace(lowered, plan=replace(lowered.plan, wide=True))
    emitter = get_emitter(Format.TFLITE)
    return (
        emitter.emit(lowered, EmitOptions(), folder / "plain.tflite").path,
        emitter.emit(wide, EmitOptions(), folder / "wide.tflite").path,
    )


def output(path: Path, x: Tensor) -> np.ndarray:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.numpy())
    interpreter.invoke()
    found: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def weights(model: TfliteModel) -> list[tuple[int, ...]]:
    """The shapes (N, kh, kw, C) of the convolutions' weights."""
    found = [model.constant(operator.inputs[1]) for operator in model.operators("CONV_2D")]
    return [weight.shape for weight in found if weight is not None]


@pytest.mark.parametrize(
    ("net", "size", "expected"),
    [
        (nn.Conv2d(3, 8, 3, 2, 1), (16, 32), [(64, 3, 2, 48)]),  # eight outputs of two columns with three channels
        (nn.Conv2d(1, 8, 3, 1, 1), (12, 12), [(96, 3, 3, 12)]),  # which the converter writes as depthwise
        (nn.Conv2d(8, 16, 1), (6, 16), [(128, 1, 1, 64)]),
        pytest.param(nn.Conv2d(4, 8, 7, 2, 3), (20, 24), None, marks=pytest.mark.slow),
        pytest.param(nn.Conv2d(3, 5, 2, 2), (8, 12), None, marks=pytest.mark.slow),
        pytest.param(nn.Conv2d(3, 8, (1, 5), 1, (0, 2)), (5, 15), None, marks=pytest.mark.slow),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 4, 3, 2, 1)),
            (8, 16),
            None,
            marks=pytest.mark.slow,
        ),
        (Shared(), (8, 16), None),
    ],
)
def test_files_give_the_same_integers(
    net: nn.Module, size: tuple[int, int], expected: list[tuple[int, ...]] | None, tmp_path: Path
) -> None:
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(1, first.in_channels, *size)
    plain, wide = files(net, x, tmp_path)
    np.testing.assert_array_equal(output(plain, x), output(wide, x))
    assert np.ptp(output(wide, x)) > 0
    before, after = (weights(load(path.read_bytes())) for path in (plain, wide))
    assert after != before
    if expected is not None:
        assert after == expected


@pytest.mark.parametrize("net", [nn.Conv2d(48, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(3, 8, 3)])
def test_what_gains_nothing_or_does_not_fit_stays(net: nn.Conv2d, tmp_path: Path) -> None:
    x = torch.randn(1, net.in_channels, 7, 7)  # without padding seven columns become five, which no stride divides
    plain, wide = files(net, x, tmp_path)
    assert plain.read_bytes() == wide.read_bytes()


def test_consecutive_reshapes_become_one(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 16)
    _, wide = files(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)), x, tmp_path)
    model = load(wide.read_bytes())
    for operator in model.operators("RESHAPE"):
        before = model.producer(operator.inputs[0])
        assert before is None or model.kind(before) != "RESHAPE"
        assert model.consumers(operator.outputs[0])


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(max_examples=200)
def test_grouped_columns_are_the_same_sums(
    channels: int, outputs: int, kernel: int, stride: int, left: int, q: int, groups: int
) -> None:
    """Against float64 convolutions: random integers, any kernel, stride and padding."""
    width = stride * q * groups
    row = Row(channels, outputs, kernel, stride, left, width)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, 2, kernel, channels), generator=generator)
    x = torch.randint(-128, 128, (1, 5, width, channels), generator=generator)
    columns = width // stride
    right = max(0, stride * (columns - 1) + kernel - left - width)

    def conv(image: Tensor, taps: Tensor, step: int) -> Tensor:
        found = F.conv2d(image.permute(0, 3, 1, 2).double(), taps.permute(0, 3, 1, 2).double(), stride=(1, step))
        return found.permute(0, 2, 3, 1)

    expected = conv(F.pad(x, (0, 0, left, right)), weight, stride)[:, :, :columns]
    wide = torch.from_numpy(row.weight(weight.to(torch.int8).numpy(), q))
    taps = row.taps(q)
    grouped = F.pad(x.reshape(1, 5, groups, -1), (0, 0, -taps[0], max(0, taps[-1])))
    found = conv(grouped, wide, 1)[:, :, :groups]
    assert torch.equal(found.reshape(1, 4, columns, outputs), expected)


def test_the_weights_that_were_replaced_are_not_in_the_file(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 8, 3, 2, 1)
    _, wide = files(net, torch.randn(1, 3, 16, 32), tmp_path)
    model = load(wide.read_bytes())
    read = {index for operator in model.graph.operators for index in operator.inputs}
    held = [index for index in range(len(model.graph.tensors)) if model.constant(index) is not None]
    assert set(held) <= read
