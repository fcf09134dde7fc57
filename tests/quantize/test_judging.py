"""What is made of biases and weights is refused only on evidence that outweighs what both methods are known to gain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgefold.export.capture import capture
from edgefold.quantize import judging
from edgefold.quantize.calibrate import annotated, calibrate, output_powers, output_sqnr_db
from edgefold.quantize.correct import correct_biases
from edgefold.quantize.rounding import round_by_data

SCATTERED = -0.2 + 2.8 * torch.tensor([1.0, -1.0] * 8)  # dB: a mean of -0.2 with a standard error of 0.7
LITTLE, ALIKE = torch.full((16,), -0.1), -0.1 + 0.2 * torch.tensor([1.0, -1.0] * 8)


def _noise(gains_db: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(gains_db), dtype=torch.float64), 10 ** (-gains_db.double() / 10)


@pytest.mark.parametrize(
    ("gains_db", "kept"),
    [(SCATTERED, True), (SCATTERED - 1.5, False), (ALIKE, False), (LITTLE, False), (-LITTLE, True), (LITTLE[:1], False)],
)
def test_samples_count_by_how_alike_they_are(gains_db: Tensor, kept: bool) -> None:
    assert judging.is_likely_gain(*_noise(gains_db)) is kept


def test_what_changes_nothing_is_not_kept() -> None:
    noise = torch.tensor([0.0, 1e-3, 2.0], dtype=torch.float64)
    assert not judging.is_likely_gain(noise, noise.clone())


@pytest.mark.parametrize(("gains_db", "kept"), [(SCATTERED, True), (LITTLE, False)])
def test_a_small_loss_within_the_scatter_costs_neither_biases_nor_weights(
    gains_db: Tensor, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.zeros(1, 3, 8, 8)).graph
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    table = calibrate(graph, samples, observer="minmax")
    before, after = _noise(gains_db)
    told = [torch.stack([before, each]) for each in (after, before)]
    answers = iter(told * 2)
    monkeypatch.setattr(judging, "output_powers", lambda graph, samples: next(answers))
    corrected = correct_biases(graph, table, samples)
    rounded = round_by_data(graph, table, samples)
    assert bool(corrected.biases) is kept
    assert bool(rounded.rounded) is kept


def test_powers_of_samples_add_up_to_the_sqnr() -> None:
    torch.manual_seed(0)
    graph = capture(nn.Conv2d(3, 8, 3).eval(), torch.zeros(1, 3, 8, 8)).graph
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    carrying = annotated(graph, calibrate(graph, samples, observer="minmax"))
    signal, noise = output_powers(carrying, samples)
    assert signal.shape == noise.shape == (4,)
    assert output_sqnr_db(carrying, samples) == pytest.approx(float(10 * torch.log10(signal.sum() / noise.sum())))
