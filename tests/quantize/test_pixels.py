"""Camera pixels as the input: the normalisation is part of the first convolution, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Format
from edgefold.errors import UnsupportedError, UsageError
from edgefold.export.capture import capture
from edgefold.export.verify import output_steps, reference_outputs, verify
from edgefold.pipeline import export_model, quantize_model
from edgefold.preprocess import Preprocessing
from edgefold.quantize.calibrate import calibrate
from edgefold.quantize.pixels import PixelInput, absorb
from edgefold.runtime import run

PREPARE = Preprocessing(12, 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _SamePadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(nn.functional.pad(x, (0, 1, 1, 2))))


def _pixels(count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 12, 10), dtype=np.uint8))


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (PREPARE.mean, PREPARE.std))
    return (pixels.double() / 255 - mean) / std


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(3, 6, 5, stride=2, padding=(2, 1), dilation=1, bias=False),
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(3, 6, 3, bias=False),
        _SamePadding(),
    ],
    ids=["padded", "strided", "valid", "valid without bias", "padding of its own"],
)
def test_it_is_exact_in_float64_at_the_border_too(module: nn.Module) -> None:
    pixels = _pixels()
    net = nn.Sequential(module, nn.ReLU()).eval()
    graph = capture(net, torch.zeros(3, 3, 12, 10)).graph.double()
    taking_pixels = absorb(graph, PixelInput.of(PREPARE))
    with torch.no_grad():
        expected = net.double()(_normalised(pixels))
        (found,) = taking_pixels(pixels.double())
    assert float((found - expected).abs().max()) < 1e-12 * float(expected.abs().max()) * 100
    # The mean is no whole pixel: padding with the nearest one would not do.
    border = PREPARE.mean[0] * 255
    assert abs(border - round(border)) > 0.3


def test_pixels_come_back_from_the_network_inputs() -> None:
    pixels = _pixels()
    assert torch.equal(PixelInput.of(PREPARE).pixels(_normalised(pixels).float()), pixels.float())


def test_the_integers_of_the_input_are_the_pixels() -> None:
    graph = absorb(capture(nn.Conv2d(3, 6, 3, padding=1).eval(), torch.zeros(1, 3, 12, 10)).graph, PixelInput.of(PREPARE))
    dark = (torch.full((1, 3, 12, 10), 3.0),)  # calibration that is far from using the range
    table = calibrate(graph, [dark], observer="minmax")
    name = graph.graph.find_nodes(op="placeholder")[0].name
    assert (table.activations[name].scale, table.activations[name].zero_point) == (1.0, -128)


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (nn.AvgPool2d(2), UnsupportedError, "goes to avg_pool2d"),
        (nn.Conv2d(3, 6, 3, groups=3), UnsupportedError, "plain convolution first"),
    ],
)
def test_a_network_that_does_not_begin_with_a_conv_is_refused(module: nn.Module, error: type[Exception], words: str) -> None:
    graph = capture(nn.Sequential(module, nn.Flatten()).eval(), torch.zeros(1, 3, 12, 10)).graph
    with pytest.raises(error, match=words):
        absorb(graph, PixelInput.of(PREPARE))


class _Guided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.guide = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(1, 6, 1)

    def forward(self, image: Tensor, guide: Tensor) -> Tensor:
        y: Tensor = self.conv(image) + self.guide(guide)
        return y


def test_a_network_of_several_inputs_takes_pixels_in_channels_last_order(tmp_path: Path) -> None:
    pixels, guide = _pixels(8), torch.randn(8, 1, 12, 10)
    inputs = (_normalised(pixels).float(), guide)
    net = _Guided().eval()
    samples = [tuple(tensor[index : index + 1] for tensor in inputs) for index in range(8)]
    quantized = quantize_model(net, samples[0], calibration=samples, observer="minmax", pixels=PREPARE, io="uint8")
    artifact = export_model(quantized, format="onnx", io="uint8", layout="nhwc", timing=False, out=tmp_path / "net.onnx")
    (found,) = run(artifact, [tensor.numpy() for tensor in inputs])
    expected = net(*inputs).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_another_number_of_channels_is_refused() -> None:
    graph = capture(nn.Conv2d(3, 6, 3).eval(), torch.zeros(1, 3, 12, 10)).graph
    with pytest.raises(UsageError, match="3 channels and the declared normalisation has 1"):
        absorb(graph, PixelInput((127.5,), (50.0,)))


@pytest.mark.parametrize(
    ("format", "layout"),
    [
        (Format.ONNX, "nchw"),
        (Format.TFLITE, "nhwc"),
        *(
            pytest.param(format, layout, marks=pytest.mark.slow)
            for format, layout in (
                (Format.ONNX, "nhwc"),
                (Format.TFLITE, "nchw"),
                (Format.EXECUTORCH, "nchw"),
                (Format.EXECUTORCH, "nhwc"),
            )
        ),
    ],
)
def test_files_take_camera_pixels(format: Format, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU()).eval()
    pixels = _pixels(8)
    inputs = _normalised(pixels).float()
    program = quantize_model(net, inputs[:1], calibration=inputs, observer="minmax", pixels=PREPARE)
    artifact = export_model(program, format=format, io="uint8", layout=layout, out=tmp_path / "net")  # type: ignore[arg-type]  # of a list
    (spec,) = artifact.inputs
    assert (spec.dtype, spec.scale, spec.zero_point) == ("uint8", 1.0, 0)
    assert spec.pixel_mean == pytest.approx([255 * value for value in PREPARE.mean])

    from_pixels = run(artifact.path, pixels.numpy())
    from_inputs = run(artifact, inputs.numpy())
    np.testing.assert_array_equal(from_pixels[0], from_inputs[0])
    (step,) = output_steps(program)
    assert step is not None
    (reference,) = reference_outputs(program, inputs)
    assert np.abs(from_pixels[0] - reference).max() <= 1.01 * step
    assert verify(artifact, program, inputs).passed
    with torch.no_grad():
        exact = net(inputs).numpy()
    noise = float(((from_pixels[0] - exact) ** 2).sum())
    assert 10 * np.log10(float((exact**2).sum()) / noise) > 30
    with pytest.raises(UsageError, match="camera pixels, which are uint8"):
        export_model(program, format=format, io="int8", out=tmp_path / "other")
