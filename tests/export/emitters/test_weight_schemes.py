"""Schemes without calibration, run in the real runtimes, against float64 networks whose numbers numpy has rounded."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.errors import EdgefoldError, UnsupportedError, UsageError
from edgefold.export.inspect import inspect

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
WEIGHTED = (nn.Conv2d, nn.Linear)


def make_net() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(48, 48, 3, padding=1, stride=2, groups=48),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, groups=2),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 40),
    ).eval()


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels


def rounded(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights (N, ...) on the grid of integers in [-127, 127] of each output channel."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64) / 127
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(weight / scale) * scale


def on_its_own_grid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values on the 256 integers between their smallest and their largest, and 0."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def reference(*, dynamic: bool) -> list[Tensor]:
    """The network's output for each image; depthwise convolutions stay float where activations are quantized."""
    net = copy.deepcopy(make_net()).double()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (torch.from_numpy(on_its_own_grid(inputs[0].numpy())),)

    for layer in net:
        if isinstance(layer, WEIGHTED) and not (dynamic and is_depthwise(layer)):
            layer.weight.data = torch.from_numpy(rounded(layer.weight.data.float().numpy()))
            if dynamic:
                layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        return [net(image[None].double()) for image in IMAGES]


def sqnr_db(expected: list[Tensor], found: NDArray[np.float32]) -> float:
    exact = torch.cat(expected).numpy()
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE])
def test_weight_only_is_the_float_network_with_rounded_weights(format: Format, tmp_path: Path) -> None:
    artifact = edgefold.export_model(
        make_net(), IMAGES[:1], format=format, precision="int8-weight-only", timing=False, out=tmp_path / "net"
    )
    (found,) = edgefold.run(artifact, IMAGES.numpy())
    expected = torch.cat(reference(dynamic=False)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
    parameters = sum(parameter.numel() for parameter in make_net().parameters())
    assert artifact.size_bytes < 2.5 * parameters
    inside = inspect(artifact.path)
    assert (inside.integer_macs, inside.dynamic_macs) == (0, 0)
    assert inside.macs > 0


class Upwards(nn.Module):
    """Transposed convolutions with a BatchNorm, a dilation, a padding that TFLite lacks, a factor, groups, and over a line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.normed = nn.ConvTranspose2d(3, 32, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.dilated = nn.ConvTranspose2d(32, 24, 3, padding=2, dilation=2)
        self.uneven = nn.ConvTranspose2d(24, 20, 3, stride=2, padding=1, output_padding=1)
        self.scaled = nn.ConvTranspose2d(20, 20, 1)
        self.factor = nn.Parameter(torch.rand(1, 20, 1, 1))
        self.grouped = nn.ConvTranspose2d(20, 6, 2, groups=2)
        self.line = nn.ConvTranspose1d(6, 40, 4, stride=2, padding=1)
        with torch.no_grad():
            for values in (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias):
                assert values is not None
                values.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.normed(x)))
        y = self.scaled(torch.relu(self.uneven(torch.relu(self.dilated(y))))) * self.factor
        y = self.grouped(torch.relu(y))
        result: Tensor = self.line(y.flatten(2))
        return result

    def rounded(self) -> "Upwards":
        """A copy in float64, weights (M, N, *kernel) on the grids of axis 1, but grouped ones and those with a factor behind."""
        assert self.norm.running_var is not None
        net = copy.deepcopy(self).double()
        gain = (self.norm.weight.double() * (self.norm.running_var.double() + self.norm.eps).rsqrt()).reshape(1, -1, 1, 1)
        for layer, factor in ((net.normed, gain), (net.dilated, 1), (net.uneven, 1), (net.line, 1)):
            taken_in = (layer.weight.data * factor).float().numpy().swapaxes(0, 1)
            layer.weight.data = torch.from_numpy(rounded(taken_in).swapaxes(0, 1).copy()) / factor
        return net


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE])
def test_weight_only_rounds_transposed_convolutions_by_output_channel(format: Format, tmp_path: Path) -> None:
    net, images = Upwards().eval(), IMAGES[:2, :, :6, :6]
    artifact = edgefold.export_model(
        net, images[:1], format=format, precision="int8-weight-only", timing=False, out=tmp_path / "net"
    )
    (found,) = edgefold.run(artifact, images.numpy())
    with torch.no_grad():
        exact, expected = net.double()(images.double()), net.rounded()(images.double()).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
    assert sqnr_db([exact], found) > 40
    # TFLite holds the zeros of a dilation, too.
    assert artifact.size_bytes < 3 * sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("format", list(Format))
def test_dynamic_quantizes_each_input_by_its_own_range(format: Format, tmp_path: Path) -> None:
    artifact = edgefold.export_model(
        make_net(), IMAGES[:1], format=format, precision="int8-dynamic", timing=False, out=tmp_path / "net"
    )
    (found,) = edgefold.run(artifact, IMAGES.numpy())
    # Weights may have smaller integers where 16-bit sums could saturate: a little more noise than that of the grids here.
    assert sqnr_db(reference(dynamic=True), found) >= 30
    parameters = sum(parameter.numel() for parameter in make_net().parameters())
    assert artifact.size_bytes < 2.5 * parameters
    inside = inspect(artifact.path)
    depthwise = 36 * 48 * 9
    assert inside.integer_macs == inside.dynamic_macs == inside.macs - depthwise > 0
    assert not inside.fallback_modules


def test_executorch_refuses_weight_only_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="XNNPACK takes int8 weights with integer activations only"):
        edgefold.export_model(
            make_net(), IMAGES[:1], format="executorch", precision="int8-weight-only", timing=False, out=tmp_path / "net"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8-weight-only", "int8-dynamic"])
def test_calibration_that_nothing_would_use_is_refused(precision: str) -> None:
    with pytest.raises(UsageError, match="needs no calibration data"):
        edgefold.quantize_model(make_net(), IMAGES[:1], calibration=IMAGES, scheme=precision)
    with pytest.raises(EdgefoldError, match="no ranges of activations"):
        edgefold.quantize_model(make_net(), IMAGES[:1], scheme=precision, observer="mse")


def test_ship_asks_for_no_calibration_and_judges_by_the_rounded_network(tmp_path: Path) -> None:
    bundle = edgefold.ship(
        make_net(),
        IMAGES[:1],
        formats=["onnx"],
        precisions=["fp32", "int8-weight-only", "int8-dynamic"],
        device="fake",
        out=tmp_path / "out",
    )
    assert bundle.manifest.calibration is None
    assert {entry.name for entry in bundle.manifest.artifacts} == {"onnx-fp32", "onnx-int8-weight-only", "onnx-int8-dynamic"}
