from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgefold
from edgefold.errors import UsageError
from edgefold.quantize.observers import OBSERVERS, HistogramObserver, get_observer, qparams_of_range
from edgefold.quantize.scheme import INT16, QParams


def _quantization_error(values: torch.Tensor, params: QParams) -> float:
    """Mean squared error of quantizing, in float64 and without the project's own code."""
    x = values.double().numpy()
    integers = np.clip(np.rint(x / params.scale) + params.zero_point, params.qmin, params.qmax)
    return float(((integers - params.zero_point) * params.scale - x).__pow__(2).mean())


@pytest.fixture(scope="module")
def heavy_tailed() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, generator=generator) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())  # Laplace


def _params(name: str, values: torch.Tensor, chunks: int = 10) -> QParams:
    observer = HistogramObserver()
    for chunk in values.chunk(chunks):
        observer(chunk)
    return qparams_of_range(*get_observer(name)(observer))


def test_each_observer_changes_the_scale_of_heavy_tails(heavy_tailed: torch.Tensor) -> None:
    scales = {name: _params(name, heavy_tailed).scale for name in OBSERVERS}
    assert len(set(scales.values())) == len(OBSERVERS)
    assert max(scales, key=lambda name: scales[name]) == "minmax"


def test_mse_beats_minmax_on_heavy_tails(heavy_tailed: torch.Tensor) -> None:
    assert _quantization_error(heavy_tailed, _params("mse", heavy_tailed)) < 0.9 * _quantization_error(
        heavy_tailed, _params("minmax", heavy_tailed)
    )


@pytest.mark.parametrize("name", OBSERVERS)
def test_uniform_values_keep_their_whole_range(name: str) -> None:
    values = torch.linspace(-1, 3, 100_000)
    params = _params(name, values)
    low, high = ((q - params.zero_point) * params.scale for q in (params.qmin, params.qmax))
    assert low == pytest.approx(-1, abs=0.1)
    assert high == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", OBSERVERS)
def test_values_after_relu_are_not_cut_to_the_spike_at_zero(name: str) -> None:
    values = torch.relu(torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    best = min(_quantization_error(values, qparams_of_range(0, high)) for high in np.linspace(0.5, 5, 100))
    # 40 dB is far above the loss that a network feels; the best possible is 52 dB.
    assert _quantization_error(values, _params(name, values)) < max(4 * best, float(values.square().mean()) * 1e-4)


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_order_and_size_of_batches_do_not_matter(name: str, heavy_tailed: torch.Tensor) -> None:
    once = _params(name, heavy_tailed, chunks=1)
    ordered = _params(name, heavy_tailed.sort().values, chunks=50)
    assert ordered.scale == pytest.approx(once.scale, rel=0.02)


def test_zero_is_always_representable() -> None:
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-3, 10.0)):
        params = qparams_of_range(low, high)
        assert params.qmin <= params.zero_point <= params.qmax
        assert params.scale > 0


def test_clipped_share_counts_what_lies_outside() -> None:
    observer = HistogramObserver()
    observer(torch.linspace(0, 1, 10_001))
    assert observer.clipped_share(qparams_of_range(0, 0.5)) == pytest.approx(0.5, abs=0.01)
    assert observer.clipped_share(qparams_of_range(0, 1)) == 0


def test_unknown_observer_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'minmax'"):
        get_observer("minmac")


def test_16_bits_are_symmetric_and_hold_the_range() -> None:
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-3, 10.0)):
        params = qparams_of_range(low, high, INT16)
        assert (params.zero_point, params.qmin, params.qmax) == (0, -32768, 32767)
        assert params.scale * 32767 >= max(-low, high) * (1 - 1e-6)
        assert params.dtype is torch.int16


@pytest.mark.parametrize("name", ["minmax", "mse", "entropy"])
def test_16_bits_are_too_many_to_clip_anything(name: str, heavy_tailed: torch.Tensor) -> None:
    observer = HistogramObserver()
    observer(heavy_tailed)
    low, high = get_observer(name)(observer, INT16)
    assert (low, high) == pytest.approx((float(heavy_tailed.min()), float(heavy_tailed.max())), rel=0.05)


def test_a_layer_whose_output_is_always_zero_runs_in_xnnpack(tmp_path: Path) -> None:
    """XNNPACK takes no layer whose products are more than 256 steps of its output; LiteRT then ended with a double free."""
    torch.manual_seed(0)
    dead, last = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1)
    assert dead.bias is not None
    assert last.bias is not None
    nn.init.constant_(dead.bias, -100.0)
    net = nn.Sequential(dead, nn.ReLU(), last).eval()
    images = torch.randn(8, 1, 3, 6, 6)
    quantized = edgefold.quantize_model(net, images[0], calibration=list(images))
    file = edgefold.export_model(quantized, images[0], format="tflite", timing=False, out=tmp_path / "dead.tflite")
    (found,) = edgefold.run(file, images[0].numpy())
    expected = last.bias.detach().reshape(1, 4, 1, 1).expand(1, 4, 6, 6)
    assert qparams_of_range(0.0, 0.0).scale == 2.0**-16
    assert float(np.abs(found - expected.numpy()).max()) < float(expected.abs().max()) / 100
