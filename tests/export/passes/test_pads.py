"""Uneven zero padding before convolutions, as in networks that come from TensorFlow: part of the layer, in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.inspect import inspect, read
from edgefold.export.verify import reference_outputs

IMAGES = torch.randn(4, 3, 16, 13, generator=torch.Generator().manual_seed(0))


class _Padded(nn.Module):
    """Pads (left, right, top, bottom) with a value, then a convolution."""

    def __init__(
        self, around: tuple[int, int, int, int], inputs: int, outputs: int, *window: int, groups: int = 1, value: float = 0.0
    ) -> None:
        super().__init__()
        self.around, self.value = around, value
        size, stride = window
        self.conv = nn.Conv2d(inputs, outputs, size, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        value = self.value or None  # as networks write it that do not name one: another op of torch
        y: Tensor = self.conv(F.pad(x, self.around, value=value))
        return y


class _Read(nn.Module):
    """A padding that is added to another value as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.first(x), (0, 1, 0, 1), value=0.0)
        return torch.relu(self.conv(padded)) + padded


def _as_in_tensorflow() -> nn.Module:
    return nn.Sequential(
        _Padded((1, 1, 0, 1), 3, 16, 3, 2),
        nn.ReLU(),
        _Padded((1, 1, 0, 1), 16, 16, 3, 2, groups=16),
        nn.ReLU(),
        _Padded((0, 1, 0, 1), 16, 8, 2, 1),
    ).eval()


@pytest.mark.parametrize("format", Format)
def test_integers_and_no_op_of_its_own(format: Format, tmp_path: Path) -> None:
    quantized = edgefold.quantize_model(_as_in_tensorflow(), IMAGES[:1], calibration=IMAGES, observer="minmax")
    artifact = edgefold.export_model(quantized, format=format, timing=False, out=tmp_path / f"net{format.suffix}")
    found = inspect(artifact.path)
    assert (found.float_ops, found.conversions_inside) == (0, 0)
    names = [op.name for op in read(artifact.path).ops]
    assert not {"PAD", "Pad"} & set(names)
    assert sum(name in ("TRANSPOSE", "Transpose", "XNNStaticTranspose") for name in names) == 2  # of the ends, which are NCHW
    expected = reference_outputs(quantized, IMAGES[:1])
    np.testing.assert_array_equal(edgefold.run(artifact, [IMAGES[:1].numpy()])[0], expected[0])


def test_float_files_of_tflite_have_none_either(tmp_path: Path) -> None:
    net = _as_in_tensorflow()
    artifact = edgefold.export_model(net, IMAGES[:1], format="tflite", out=tmp_path / "net.tflite")
    assert not {"PAD"} & {op.name for op in read(artifact.path).ops}
    (found,) = edgefold.run(artifact, [IMAGES[:1].numpy()])
    np.testing.assert_allclose(found, net(IMAGES[:1]).detach().numpy(), atol=1e-5)


INT8 = Precision.INT8


@pytest.mark.parametrize(
    ("net", "precision"),
    [
        (_Padded((1, 0, 1, 0), 3, 8, 3, 2), INT8),  # before, where "same" adds behind
        (_Padded((0, 1, 0, 1), 3, 8, 3, 2, value=0.5), Precision.FP32),
        pytest.param(_Padded((0, 1, 0, 1), 3, 8, 3, 2, value=0.5), INT8, marks=pytest.mark.slow),
        (_Padded((2, 3, 2, 3), 3, 8, 3, 2), Precision.FP32),
        (_Read(), INT8),
    ],
    ids=["before", "value", "value-int8", "wide", "read-twice"],
)
def test_a_padding_that_is_not_same_stays_right(net: nn.Module, precision: Precision, tmp_path: Path) -> None:
    data = IMAGES if precision is INT8 else None
    artifact = edgefold.export_model(
        net.eval(), IMAGES[:1], format="tflite", precision=precision, calibration=data, timing=False, out=tmp_path / "net.tflite"
    )
    assert {"PAD", "PADV2"} & {op.name for op in read(artifact.path).ops}
    (found,) = edgefold.run(artifact, [IMAGES[:1].numpy()])
    expected = net(IMAGES[:1]).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 if data is None else 0.03 * np.abs(expected).max())
