"""`int16x8`, run in LiteRT, against float64 networks that round activations to 16 bits and weights to 8."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.errors import UnsupportedError, UsageError
from edgefold.export.capture import capture
from edgefold.export.inspect import inspect, read
from edgefold.export.inspectors.base import Kind
from edgefold.export.program import QuantizedProgram
from edgefold.export.verify import verify
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.graph import constant_of, module_path
from edgefold.quantize.scheme import INT16, WEIGHT_SCALE

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(3))
Round = Callable[[str, Tensor], Tensor]


class Small(nn.Module):
    """Residual addition, concatenation, average pooling, a padded maximum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.side = nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(24 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.rounded(x, lambda name, value: value)

    def rounded(self, x: Tensor, at: Round) -> Tensor:
        """The network, with ``at`` applied where a value is quantized; values under one name share a grid."""
        x = at("stem", torch.relu(self.stem(at("input", x))))
        y = at("depth", nn.functional.relu6(self.depth(x)))
        x = at("sum", torch.relu(at("point", self.point(y)) + x))
        # The pools keep the grid of what they read, and a concatenation has one for all.
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        x = torch.cat([x, at("sum", self.side(x))], 1)
        x = at("sum", nn.functional.avg_pool2d(x, 2))
        return at("head", self.head(x.flatten(1)))


def make_small() -> Small:
    torch.manual_seed(11)
    return Small().eval()


def reference(images: Tensor, quantized: QuantizedProgram) -> NDArray[np.float64]:
    """Calibrates by the largest magnitude, then computes on the grids with the weights that were chosen, all in float64."""
    net = make_small().double()
    graph = quantized.program.graph
    chosen = {module_path(node): node.args[1:3] for node in graph.graph.nodes if WEIGHT_SCALE in node.meta}
    largest: dict[str, float] = {}

    def look(name: str, value: Tensor) -> Tensor:
        largest[name] = max(largest.get(name, 0.0), float(value.abs().max()))
        return value

    def to_grid(name: str, value: Tensor) -> Tensor:
        step = largest[name] / 32767
        return torch.clamp(torch.round(value / step), -32768, 32767) * step

    with torch.no_grad():
        net.rounded(images.double(), look)
        for name, layer in net.named_children():
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert layer.bias is not None
            weight, bias = (constant_of(graph, node).double() for node in chosen[name])
            step = layer.weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
            integers = torch.round(weight / step)
            assert bool(((integers * step - layer.weight).abs() < 3 * step).all())
            layer.weight.data, layer.bias.data = integers * step, bias
        return net.rounded(images.double(), to_grid).numpy()


def sqnr_db(exact: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def export(net: nn.Module, out: Path, precision: str = "int16x8", images: Tensor = IMAGES) -> edgefold.Artifact:
    return edgefold.export_model(quantize(net, precision, images), format="tflite", timing=False, out=out)


def quantize(net: nn.Module, precision: str = "int16x8", images: Tensor = IMAGES) -> QuantizedProgram:
    return edgefold.quantize_model(net, images[:1], calibration=images, scheme=precision, observer="minmax")


def test_small_network_computes_what_float64_does_on_the_same_grids(tmp_path: Path) -> None:
    quantized = quantize(make_small())
    artifact = edgefold.export_model(quantized, format="tflite", timing=False, out=tmp_path / "net")
    (found,) = edgefold.run(artifact, IMAGES.numpy())
    with torch.no_grad():
        exact = make_small()(IMAGES).double().numpy()
    assert sqnr_db(reference(IMAGES, quantized), found.astype(np.float64)) >= 70
    narrow = export(make_small(), tmp_path / "narrow", "int8")
    (coarse,) = edgefold.run(narrow, IMAGES.numpy())
    assert sqnr_db(exact, found.astype(np.float64)) >= sqnr_db(exact, coarse.astype(np.float64)) + 6
    inside = inspect(artifact.path)
    assert inside.integer_macs == inside.macs > 0
    assert inside.dynamic_macs == inside.float_ops == inside.conversions_inside == 0
    assert {"CONCATENATION", "PADV2", "MAX_POOL_2D", "AVERAGE_POOL_2D", "ADD"} <= set(inside.ops)
    kinds = [op.kind for op in read(artifact.path).ops]
    assert kinds[1:-1] == [Kind.INTEGER] * (len(kinds) - 2)


class Awkward(nn.Module):
    """Ops that the converter has no 16-bit form of, between layers: two run in integers, the others in float."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 8, 1)
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.one(x), 2)
        x = nn.functional.hardswish(x)  # after a pooling: additions and products of numbers
        x = nn.functional.relu6(x * self.two(x))
        x = nn.functional.gelu(self.slope(self.two(x)))
        y: Tensor = self.three(x + x.mean((2, 3), keepdim=True))
        return y


def test_ops_without_a_16_bit_kernel_stay_float_and_are_named(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = Awkward().eval()
    program = edgefold.quantize_model(net, IMAGES[:1], calibration=IMAGES, scheme="int16x8")
    artifact = edgefold.export_model(program, format="tflite", timing=False, out=tmp_path / "net")
    report = verify(artifact, program, IMAGES)
    assert report.passed
    assert report.outputs[0].sqnr_db is not None
    assert report.outputs[0].sqnr_db >= 60
    inside = inspect(artifact.path)
    assert inside.integer_macs == inside.macs
    assert {op.name for op in read(artifact.path).ops if op.kind is Kind.FLOAT} >= {"GELU"}
    assert "RELU6" not in inside.ops
    assert "FLOOR" not in inside.ops


def test_sums_have_64_bits(tmp_path: Path) -> None:
    """1152 products of 32767 and 127 are more than 32 bits hold."""
    conv = nn.Conv2d(128, 4, 3, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(2, 128, 3, 3)
    artifact = export(conv.eval(), tmp_path / "net", images=x)
    (found,) = edgefold.run(artifact, x.numpy())
    np.testing.assert_allclose(found, 1152.0, rtol=1e-4)


@pytest.mark.parametrize("format", [Format.ONNX, Format.EXECUTORCH])
def test_other_formats_refuse_it_with_the_reason(format: Format, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only TFLite has kernels that multiply 16-bit activations") as caught:
        edgefold.export_model(
            make_small(), IMAGES[:1], format=format, precision="int16x8", calibration=IMAGES, out=tmp_path / "net"
        )
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_8_bit_ends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--io int8 does not go with precision 'int16x8'"):
        edgefold.export_model(
            make_small(), IMAGES[:1], format="tflite", precision="int16x8", calibration=IMAGES, io="int8", out=tmp_path / "net"
        )


@pytest.mark.slow
def test_built_in_network_from_end_to_end(tmp_path: Path) -> None:
    bundle = edgefold.ship(
        "hetnet-fmnist",
        formats=["tflite"],
        precisions=["fp32", "int8", "int16x8"],
        device="fake",
        timing=False,
        out=tmp_path / "out",
    )
    summary = json.loads((tmp_path / "out" / "results" / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    assert rows["tflite-int16x8"]["passed"]
    assert rows["tflite-int16x8"]["sqnr_db"] >= rows["tflite-int8"]["sqnr_db"] + 20
    assert rows["tflite-int16x8"]["accuracy"] == pytest.approx(rows["tflite-fp32"]["accuracy"], abs=0.002)
    scales = {scale.scheme: scale for scale in bundle.manifest.scales}["int16x8"]
    assert {(entry.zero_point, entry.qmin, entry.qmax) for entry in scales.activations} == {(0, -32768, 32767)}
    assert any("reference kernels" in note for note in summary["notes"])


def test_a_bias_of_equal_numbers_is_right_in_every_channel(emit: Callable[..., edgefold.Artifact], tmp_path: Path) -> None:
    """The converter takes it for one number, and for one integer though each channel has a scale of its own."""
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 6, 1).eval()
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(0.002, 0.01, 6).reshape(6, 1, 1, 1))
        conv.bias.fill_(0.5)  # type: ignore[union-attr]  # it has one
    program = capture(conv, IMAGES[:1])
    table = calibrate(program.graph, [(image[None],) for image in IMAGES], observer="minmax", grid=INT16)
    quantized = replace(program, graph=attach(program.graph, table))
    artifact = emit(quantized, Format.TFLITE, tmp_path / "net.tflite", Precision.INT16X8)
    (found,) = edgefold.run(artifact, IMAGES.numpy())
    with torch.no_grad():
        exact = conv.double()(IMAGES.double()).numpy()
    assert sqnr_db(exact, found.astype(np.float64)) >= 50
