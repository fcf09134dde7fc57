"""Intervals hold what they promise, on distributions whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgefold.device_bench import stats
from edgefold.results import Estimate


def test_the_order_of_loading_is_neither_effect_nor_noise() -> None:
    # B takes 1.03 times as long; what is loaded first is 2 % slower.
    noise = [0.002, -0.002, 0.001, -0.001, 0.0, 0.0]
    forward = [math.log(1.03 / 1.02) + each for each in noise]
    backward = [math.log(1.03 * 1.02) + each for each in noise]
    found = stats.crossed_ratio(forward, backward)
    assert found.value == pytest.approx(1.03)
    # s = 0.00141 over 10 degrees of freedom, t = 2.228: 2.228 * 0.00141 / sqrt(12)
    assert math.log(found.high / found.value) == pytest.approx(2.228 * math.sqrt(2e-5 / 10) / math.sqrt(12), rel=1e-3)
    assert stats.crossed_ratio([0.1], [0.1]).high == math.inf


def test_the_crossed_interval_holds_the_truth_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        forward, backward = rng.normal(0.03 - 0.02, 0.01, 6), rng.normal(0.03 + 0.02, 0.01, 6)
        found = stats.crossed_ratio(forward.tolist(), backward.tolist())
        held += found.low <= math.exp(0.03) <= found.high
    assert 0.935 < held / 2000 < 0.965


def processes(
    rng: np.random.Generator, count: int, samples: int, between: float, within: float, median: float = 1e6
) -> list[list[int]]:
    """Log-normal samples around process medians that spread themselves: autocorrelation as real processes have it."""
    levels = median * np.exp(between * rng.standard_normal(count))
    return [[int(x) for x in level * np.exp(within * rng.standard_normal(samples))] for level in levels]


@pytest.mark.parametrize("count", [5, 12])
def test_the_interval_of_the_median_covers_the_truth(count: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        found = stats.percentile(processes(rng, count, 65, 0.02, 0.05), 50, seed=trial)
        assert found is not None
        assert found.low <= found.value <= found.high
        covered += found.low <= 1e6 <= found.high
    assert covered >= 53


def test_percentiles_need_enough_samples() -> None:
    assert stats.percentile([[1] * 63], 90) is None
    assert stats.percentile([[1] * 64], 90) is not None
    assert stats.percentile([[1] * 600, [1] * 61], 99) is None
    found = stats.percentile([list(range(1000)), list(range(1000))], 99)
    assert found is not None
    assert found.value == pytest.approx(np.percentile(np.arange(1000), 99), abs=1)


def test_the_median_is_that_of_all_samples() -> None:
    found = stats.percentile([[1, 2, 3], [10, 20, 30, 40]], 50)
    assert found is not None
    assert found.value == 10


def test_noise_grows_with_the_spread_between_processes() -> None:
    rng = np.random.default_rng(1)
    quiet, loud = (stats.aa_noise(processes(rng, 6, 100, between, 0.01)) for between in (0.005, 0.2))
    assert quiet < 0.05 < 0.1 < loud
    assert stats.aa_noise(processes(rng, 3, 100, 0.1, 0.1)) == math.inf


def test_mean_ratio_is_the_t_interval_of_the_logarithms() -> None:
    logs = [0.01, 0.03, 0.02, 0.02]
    found = stats.mean_ratio(logs)
    half = 3.182446 * np.std(logs, ddof=1) / 2  # t of 3 degrees of freedom, from a table
    assert found.value == pytest.approx(math.exp(0.02))
    assert found.low == pytest.approx(math.exp(0.02 - half), rel=1e-6)
    assert found.high == pytest.approx(math.exp(0.02 + half), rel=1e-6)


def test_ratio_of_separate_results() -> None:
    rng = np.random.default_rng(2)
    found = stats.ratio(processes(rng, 8, 100, 0.01, 0.02, 1.2e6), processes(rng, 8, 100, 0.01, 0.02))
    assert found.low < 1.2 < found.high
    assert found.high - found.low < 0.1


def test_outliers_are_beyond_three_interquartile_ranges() -> None:
    # Quartiles 25 and 75: the fences lie at -125 and 225.
    assert stats.outliers([*range(101), 224, -124]) == 0
    assert stats.outliers([*range(101), 240, -140]) == 2
    assert stats.outliers([5] * 10) == 0
    assert stats.outliers([5] * 10 + [6]) == 1


def test_independent_errors_widen_an_interval_in_quadrature() -> None:
    plain = Estimate(1.1, 1.1 * math.exp(-0.03), 1.1 * math.exp(0.03))
    found = stats.widened(plain, (math.expm1(0.04), 0.0))
    assert (found.low, found.value, found.high) == pytest.approx((1.1 * math.exp(-0.05), 1.1, 1.1 * math.exp(0.05)))
    assert stats.widened(plain, (0.0, 0.0)).high == pytest.approx(plain.high)
    assert stats.widened(Estimate(1.0, 0.0, math.inf), (0.1, 0.1)) == Estimate(1.0, 0.0, math.inf)
