"""Medians, percentiles and their 95 % intervals from samples of several processes.

Samples within one process are autocorrelated (one memory layout, one history of the clock), so the unit of resampling is the
process: a bootstrap draws whole processes with replacement. With few processes the plain percentile interval is too narrow;
its levels are widened to those of a t interval, ``Phi(-sqrt(n / (n - 1)) t)`` (Hesterberg, "What Teachers Should Know about
the Bootstrap", 2015, 3.3).

All times are in ns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgefold.results import Estimate

Floats = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
# A process is represented by this many of its quantiles at most; more samples do not move a median of pooled ones.
QUANTILES = 301
MIN_SAMPLES = {50: 1, 90: 64, 99: 662}
FENCE = 3.0


def percentile(processes: Sequence[Sequence[int]], percent: int, *, seed: int = 0) -> Estimate | None:
    """A percentile of all samples with its interval; ``None`` where there are too few samples for it.

    n samples hold the 90th percentile well enough from 64, the 99th from 662 (MLPerf's bound at 99 % confidence, 0.5 % margin).
    """
    if sum(map(len, processes)) < MIN_SAMPLES[percent]:
        return None
    pooled = np.concatenate([np.asarray(samples, np.float64) for samples in processes])
    value = float(np.percentile(pooled, percent))
    if len(processes) < 2:
        return Estimate(value, float(pooled.min()), float(pooled.max()))
    draws = _resampled(processes, percent / 100, len(processes), np.random.default_rng(seed))
    low, high = np.quantile(draws, _levels(len(processes)))
    return Estimate(value, min(float(low), value), max(float(high), value))


def aa_noise(processes: Sequence[Sequence[int]], *, seed: int = 0) -> float:
    """The half-width of the interval of the ratio of two halves of the same runs, as a share: what A against A would show.

    Infinite with fewer than four processes, where no two halves can be told apart.
    """
    if len(processes) < 4:
        return math.inf
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(len(processes)), (RESAMPLES, 1)), axis=1)
    half = len(processes) // 2
    weights = np.zeros((2, RESAMPLES, len(processes)), np.int32)
    rows = np.arange(RESAMPLES)[:, None]
    weights[0][rows, order[:, :half]] = 1
    weights[1][rows, order[:, half : 2 * half]] = 1
    values, owners = _sketch(processes)
    first, second = (_weighted_quantile(values, owners, each, 0.5) for each in weights)
    ratios = np.log(first / second)
    low, high = np.quantile(ratios, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(math.expm1((high - low) / 2))


def ratio(candidate: Sequence[Sequence[int]], baseline: Sequence[Sequence[int]], *, seed: int = 0) -> Estimate:
    """Median of the candidate over median of the baseline, measured apart from each other, with its interval."""
    rng = np.random.default_rng(seed)
    pooled = [float(np.median(np.concatenate([np.asarray(each) for each in side]))) for side in (candidate, baseline)]
    value = pooled[0] / pooled[1]
    draws = [_resampled(side, 0.5, len(side), rng) for side in (candidate, baseline)]
    low, high = np.quantile(draws[0] / draws[1], _levels(min(len(candidate), len(baseline))))
    return Estimate(value, min(float(low), value), max(float(high), value))


def widened(estimate: Estimate, noises: Sequence[float]) -> Estimate:
    """A ratio whose interval also holds these errors, each the half-width of a 95 % interval as a share: independent ones add in
    quadrature, on a logarithmic scale."""
    extra = sum(math.log1p(noise) ** 2 for noise in noises)
    if estimate.low <= 0:
        return estimate
    down, up = (math.sqrt(math.log(end / estimate.value) ** 2 + extra) for end in (estimate.low, estimate.high))
    return Estimate(estimate.value, estimate.value * math.exp(-down), estimate.value * math.exp(up))


def mean_ratio(log_ratios: Sequence[float]) -> Estimate:
    """The geometric mean of independent ratios, given as logarithms, with its t interval."""
    values = np.asarray(log_ratios, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(math.exp(mean), 0.0, math.inf)
    half = _student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def crossed_ratio(forward: Sequence[float], backward: Sequence[float]) -> Estimate:
    """The geometric mean of ratios, given as logarithms, of which half were measured in one order and half in the other.

    Which model a process loads first has an effect of its own (some percent). It cancels out of the mean over both orders, and it
    must not count as noise either: the t interval is that of the spread within each order.
    """
    sides = [np.asarray(side, np.float64) for side in (forward, backward)]
    mean = float(sum(side.mean() for side in sides)) / 2
    degrees = sum(len(side) - 1 for side in sides)
    if min(map(len, sides)) < 2:
        return Estimate(math.exp(mean), 0.0, math.inf)
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / degrees
    half = _student(degrees) * math.sqrt(variance * sum(1 / len(side) for side in sides)) / 2
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def turn_medians(samples: Sequence[int], turns: Sequence[int]) -> Floats:
    """The median of each turn of one model; ``turns`` has their numbers of samples."""
    ends = np.cumsum(np.asarray(turns, np.intp))
    return np.array([np.median(part) for part in np.split(np.asarray(samples, np.float64), ends[:-1])])


def turns_ratio(candidate: Floats, baseline: Floats) -> float:
    """The ratio in one process that ran both models in turns A B B A: the median over the blocks, each of which has two turns of
    both, so that a drift over a block cancels out and a block that something disturbed counts no more than any other."""
    logs = (np.log(candidate) - np.log(baseline)).reshape(-1, 2).mean(axis=1)
    return math.exp(float(np.median(logs)))


def outliers(samples: Sequence[int]) -> int:
    """How many samples lie beyond the outer fences: three interquartile ranges outside the quartiles (Tukey, 1977)."""
    values = np.asarray(samples, np.float64)
    first, third = np.percentile(values, (25, 75))
    reach = FENCE * (third - first)
    return int(((values < first - reach) | (values > third + reach)).sum())


def _student(degrees: int) -> float:
    """The two-sided 95 % point of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def _levels(processes: int) -> tuple[float, float]:
    """The quantile levels of a bootstrap distribution that hold 95 % with this many processes."""
    if processes < 2:
        return 0.0, 1.0
    low = NormalDist().cdf(-math.sqrt(processes / (processes - 1)) * _student(processes - 1))
    return low, 1 - low


def _sketch(processes: Sequence[Sequence[int]]) -> tuple[Floats, NDArray[np.intp]]:
    """All samples (or quantiles of them) in rising order, and which process each belongs to."""
    parts = []
    for samples in processes:
        values = np.asarray(samples, np.float64)
        parts.append(values if len(values) <= QUANTILES else np.quantile(values, (np.arange(QUANTILES) + 0.5) / QUANTILES))
    values = np.concatenate(parts)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(values, kind="stable")
    return values[order], owners[order]


def _weighted_quantile(values: Floats, owners: NDArray[np.intp], weights: NDArray[np.int32], level: float) -> Floats:
    """One quantile for each row of weights; ``weights`` is (rows, processes), how often each process was drawn."""
    parts = []
    # In parts: the table of (rows, samples) would take 60 MB.
    for start in range(0, len(weights), 200):
        total = np.cumsum(weights[start : start + 200, owners], axis=1)
        parts.append(values[np.argmax(total >= level * total[:, -1:], axis=1)])
    return np.concatenate(parts)


def _resampled(processes: Sequence[Sequence[int]], level: float, draws: int, rng: np.random.Generator) -> Floats:
    """The quantile of each bootstrap resample of the processes."""
    values, owners = _sketch(processes)
    share = np.full(len(processes), 1 / len(processes))
    return _weighted_quantile(values, owners, rng.multinomial(draws, share, RESAMPLES).astype(np.int32), level)
