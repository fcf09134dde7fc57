"""Files that take any batch, run in their runtimes with several, against float64 torch one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Artifact, Format, Precision
from edgefold.device_bench.cases import make_case
from edgefold.errors import UnsupportedError, UsageError
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions
from edgefold.export.inspect import inspect
from edgefold.export.verify import verify
from edgefold.runtime import describe, run

ANY = EmitOptions(dynamic_batch=True, max_batch=7)
SAMPLES = 6


@pytest.fixture(scope="module")
def check(emitted: Callable[..., Artifact], make_net: Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]) -> Callable[..., None]:
    """A network's file in one format and precision, on batches of 1, 3 and 6."""

    def run_all(name: str, format: Format, precision: Precision) -> None:
        artifact = emitted(name, format, precision, ANY)
        module, (example,) = make_net(name)
        images = torch.randn(SAMPLES, *example.shape[1:], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            exact = torch.cat([module.double()(image[None].double()) for image in images]).numpy()
        found = {batch: run(artifact, images.numpy(), batch=batch)[0] for batch in (1, 3, SAMPLES)}
        span = float(np.ptp(exact))
        for batch, output in found.items():
            assert output.shape == exact.shape, batch
            assert np.abs(output - exact).max() < (1e-5 if precision is Precision.FP32 else 0.1) * span, batch
        # A sample's integers do not depend on who is computed beside it.
        if precision is Precision.INT8:
            assert all(np.array_equal(output, found[1]) for output in found.values())

    return run_all


# ExecuTorch's converter takes long for a program of open sizes.
SLOW_IN_EXECUTORCH = [Format.ONNX, Format.TFLITE, pytest.param(Format.EXECUTORCH, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        (Format.ONNX, Precision.FP32),
        (Format.TFLITE, Precision.FP32),
        (Format.TFLITE, Precision.INT8),
        pytest.param(Format.ONNX, Precision.INT8, marks=pytest.mark.slow),
        *(pytest.param(Format.EXECUTORCH, precision, marks=pytest.mark.slow) for precision in (Precision.FP32, Precision.INT8)),
    ],
)
def test_a_gate_a_shuffle_and_a_flatten(check: Callable[..., None], format: Format, precision: Precision) -> None:
    check("gated", format, precision)


@pytest.mark.parametrize("format", SLOW_IN_EXECUTORCH)
def test_adaptive_pooling_to_any_size(check: Callable[..., None], format: Format) -> None:
    check("pools", format, Precision.FP32)


@pytest.mark.parametrize("format", SLOW_IN_EXECUTORCH)
def test_the_heads_of_a_detector(
    emitted: Callable[..., Artifact], make_net: Callable[..., tuple[nn.Module, tuple[Tensor, ...]]], format: Format
) -> None:
    artifact = emitted("heads", format, Precision.FP32, ANY)
    module, (example,) = make_net("heads")
    images = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = module.double()(images.double())
    assert [spec.name for spec in artifact.outputs] == list(exact)
    for batch in (1, 3):
        for output, wanted in zip(run(artifact, images.numpy(), batch=batch), exact.values(), strict=True):
            np.testing.assert_allclose(output, wanted.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("format", list(Format))
def test_hetnet_captured_with_two_samples(check: Callable[..., None], format: Format, precision: Precision) -> None:
    check("hetnet", format, precision)


@pytest.mark.parametrize("format", list(Format))
def test_the_file_says_so(emitted: Callable[..., Artifact], format: Format) -> None:
    artifact = emitted("gated", format, Precision.FP32, ANY)
    said = describe(artifact.path)
    assert said.inputs == artifact.inputs
    assert artifact.dynamic_batch
    assert artifact.inputs[0].shape == (-1, 3, 16, 16)
    assert artifact.outputs[0].shape == (-1, 10)
    assert artifact.inputs[0].max_batch == (7 if format is Format.EXECUTORCH else None)
    assert artifact.inputs[0].shape_text == "any×3×16×16"
    assert make_case(artifact, seed=0).inputs[0].shape == (1, 1, 3, 16, 16)


@pytest.mark.parametrize("format", [pytest.param(Format.ONNX, marks=pytest.mark.slow), Format.TFLITE])
def test_the_same_ops_run_accelerated(emitted: Callable[..., Artifact], format: Format) -> None:
    fixed, free = (inspect(emitted("gated", format, Precision.FP32, options).path) for options in (EmitOptions(), ANY))
    assert free.fallback_modules == fixed.fallback_modules
    assert free.convs == fixed.convs
    assert free.macs == fixed.macs


def test_the_runtimes_own_declaration(emitted: Callable[..., Artifact]) -> None:
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    model = onnx.load(emitted("gated", Format.ONNX, Precision.FP32, ANY).path)
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in (*model.graph.input, *model.graph.output)] == ["batch"] * 2
    interpreter = Interpreter(str(emitted("gated", Format.TFLITE, Precision.FP32, ANY).path))
    assert list(interpreter.get_input_details()[0]["shape_signature"]) == [-1, 3, 16, 16]


def test_verify_runs_single_samples_and_batches(
    emitted: Callable[..., Artifact], make_net: Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]
) -> None:
    module, (example,) = make_net("gated")
    report = verify(emitted("gated", Format.ONNX, Precision.FP32, ANY), module, torch.randn(5, *example.shape[1:]))
    assert report.passed
    assert (report.samples, report.batches) == (5, (1, 3))
    fixed = verify(emitted("gated", Format.ONNX, Precision.FP32), module, torch.randn(5, *example.shape[1:]))
    assert fixed.batches == ()


class _Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class _Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(1, 1, 4, 4)], 1)


class _Reordering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(1, 0, 2, 3).reshape(3, -1)


class _Recurrent(nn.Module):
    """Its state is zeros of the captured batch; torch's kernel breaks the process with another batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[:, 0])[1][0][-1]
        return y


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (_Mixing(), r"\(mean\) pins it"),
        (_Counting(), r"'cat' \(cat\) pins it"),
        (_Reordering(), r"\(permute\) pins it"),
        (_Recurrent(), r"'layer' \(lstm\) pins it \(its state has a fixed number of samples\)"),
    ],
)
def test_what_needs_a_fixed_batch_is_named(module: nn.Module, said: str, emit: Callable[..., Artifact], tmp_path: Path) -> None:
    program = capture(module.eval(), torch.randn(1, 3, 4, 4))
    with pytest.raises(UnsupportedError, match=said):
        emit(program, Format.ONNX, tmp_path / "out.onnx", options=ANY)
    assert not list(tmp_path.iterdir())


def test_an_operator_of_tflite_that_needs_a_fixed_batch_is_named(emit: Callable[..., Artifact], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2, 2)).eval()
    with pytest.raises(
        UnsupportedError, match=r"operator TRANSPOSE_CONV at '1\b.*' holds a fixed shape; leave --dynamic-batch out"
    ):
        emit(capture(net, torch.randn(1, 3, 4, 4)), Format.TFLITE, tmp_path / "out.tflite", options=ANY)
    assert not list(tmp_path.iterdir())


def test_a_limit_of_one_is_no_limit() -> None:
    with pytest.raises(UsageError, match="largest batch is 1"):
        EmitOptions(dynamic_batch=True, max_batch=1)


class _Plane(nn.Module):
    """A vector on every place of an image, resized to twice its size."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.about, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(5, 16), nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor, about: Tensor) -> Tensor:
        y = self.image(image) + self.about(about)[:, :, None, None]
        y = nn.functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return cast(Tensor, self.last(y))


def test_executorch_takes_a_limit_that_is_a_size_and_a_resize(emit: Callable[..., Artifact], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, limit = _Plane().eval(), 16  # as many samples as channels, and a number with which torch compares batches
    program = capture(network, (torch.randn(1, 3, 6, 5), torch.randn(1, 5)))
    options = EmitOptions(dynamic_batch=True, max_batch=limit)
    artifact = emit(program, Format.EXECUTORCH, tmp_path / "out.pte", options=options)
    network.double()
    for batch in (1, 3, limit):
        image, about = torch.randn(batch, 3, 6, 5), torch.randn(batch, 5)
        with torch.no_grad():
            exact = network(image.double(), about.double()).numpy()
        (found,) = run(artifact, [image.numpy(), about.numpy()], batch=batch)
        np.testing.assert_allclose(found, exact, atol=1e-5)
    assert describe(artifact.path).inputs[0].max_batch == limit
