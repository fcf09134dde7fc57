"""Networks in which a converter takes the samples for another axis, in files for any batch, against float64 torch.

The batches are 2 and the sizes of the network: there a wrong axis gives wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Artifact, Format, Precision
from edgefold.errors import UnsupportedError
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, batches
from edgefold.export.emitters.batches import check_batches
from edgefold.runtime import run

BATCHES = (2, 4, 5, 6)
SIDE = (3, 6, 5)  # channels, height, width
META = 7
ANY = EmitOptions(dynamic_batch=True, max_batch=16)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.about, self.columns, self.steps = nn.Linear(META, 4), nn.Linear(META, 5), nn.Linear(META, 6)
        self.row, self.norm, self.instances = nn.Linear(5, 4), nn.LayerNorm(5), nn.InstanceNorm2d(4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(6, 4))


class _Channels(_Network):
    """Metadata to every place of an image: (N, C) as (N, C, 1, 1)."""

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.image(image) + self.about(meta)[:, :, None, None]))
        return y


class _Columns(_Network):
    """One number a column, and one a sample."""

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        y = self.image(image) - self.columns(meta)[:, None, None, :]
        return y / (1 + meta.abs().mean(1)).view(-1, 1, 1, 1)


class _Rows(_Network):
    """Linear layers on rows of an image, which become one list of the rows of all samples."""

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        rows = self.row(image[:, 0])  # (N, 6, 4)
        return rows * torch.sigmoid(self.about(meta)[:, None]) + self.steps(meta)[:, :, None] + self.table


class _Norms(_Network):
    """Means and variances of each row, and of each channel."""

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        y: Tensor = self.instances(self.image(self.norm(image))) + self.about(meta)[:, :, None, None]
        return y - y.mean(1).unsqueeze(1)


class _Attention(_Network):
    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        places = self.image(image).flatten(2).transpose(1, 2)  # (N, 30, 4)
        weights = (self.query(places) @ self.key(places).transpose(1, 2)).softmax(2)
        y: Tensor = weights @ self.value(places) + self.about(meta)[:, None]
        return y


NETWORKS = {kind.__name__: kind for kind in (_Channels, _Columns, _Rows, _Norms, _Attention)}


def _inputs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *SIDE, generator=generator), torch.randn(count, META, generator=generator)


@pytest.fixture(scope="module")
def check(emit: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Format], None]:
    """A network's file in a format at all batches."""
    folder = tmp_path_factory.mktemp("batches")

    def run_all(name: str, format: Format) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name]().eval()
        artifact = emit(capture(network, _inputs(1)), format, folder / f"{name}{format.suffix}", options=ANY)
        network.double()
        for batch in BATCHES:
            images, metas = _inputs(batch)
            with torch.no_grad():
                samples = zip(images.double(), metas.double(), strict=True)
                exact = torch.cat([network(image[None], meta[None]) for image, meta in samples]).numpy()
            (found,) = run(artifact, [images.numpy(), metas.numpy()], batch=batch)
            assert found.shape == exact.shape, batch
            assert np.abs(found - exact).max() < 1e-5 * float(np.ptp(exact)), batch

    return run_all


# Each converter takes long for a program of open sizes. LiteRT's makes the most of these faults.
def _fast(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in names else [pytest.mark.slow]) for name in NETWORKS]


@pytest.mark.parametrize("name", _fast("_Attention"))
def test_tflite(name: str, check: Callable[[str, Format], None]) -> None:
    check(name, Format.TFLITE)


@pytest.mark.parametrize("name", _fast("_Channels"))
def test_onnx(name: str, check: Callable[[str, Format], None]) -> None:
    check(name, Format.ONNX)


@pytest.mark.parametrize("name", _fast())  # of which `test_dynamic_batch` has one
def test_executorch(name: str, check: Callable[[str, Format], None]) -> None:
    """The limit is 16, with which torch compares the batch: the converter took it for the only one."""
    check(name, Format.EXECUTORCH)


def test_a_limit_that_the_converter_takes_for_the_size_is_refused(
    emit: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_THRESHOLDS", frozenset())
    program = capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, *SIDE))
    with pytest.raises(UnsupportedError, match=r"its converter makes it 16; choose another --max-batch"):
        emit(program, Format.EXECUTORCH, tmp_path / "out.pte", options=ANY)
    assert not list(tmp_path.iterdir())


class _Zeros(nn.Module):
    """Zeros like the input, which the converter makes a constant of one sample."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x.relu()], 1)


def test_a_file_that_fails_with_several_samples_is_refused(emit: Callable[..., Artifact], tmp_path: Path) -> None:
    program = capture(_Zeros().eval(), torch.randn(1, *SIDE))
    with pytest.raises(
        UnsupportedError, match=r"left open in tflite: its runtime runs the file with one sample, but not with 7 at"
    ):
        emit(program, Format.TFLITE, tmp_path / "out.tflite", Precision.FP32, ANY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "said"), [((-1, *SIDE), "with one sample, but not with 7 at once"), ((-1, 2, 6, 5), "not even with one sample")]
)
def test_a_file_that_the_runtime_does_not_take_is_refused(
    shape: tuple[int, ...], said: str, emit: Callable[..., Artifact], tmp_path: Path
) -> None:
    fixed = emit(capture(nn.ReLU().eval(), torch.randn(1, *SIDE)), Format.ONNX, tmp_path / "out.onnx")
    claimed = replace(fixed, inputs=(replace(fixed.inputs[0], shape=shape),))
    with pytest.raises(UnsupportedError, match=said):
        check_batches(claimed, (torch.randn(7, *shape[1:]),))
