"""How the range of an activation is chosen from the values seen in calibration.

One observer collects a histogram (`BINS` bins over the range seen so far, widened by powers of two, so that merging is exact).
A rule then takes a range from it; several rules can be tried on one calibration:

* ``minmax``: all of it.
* ``percentile``: cuts 0.01 % at the far end of each side (Wu et al., "Integer Quantization for Deep Learning Inference", 2020).
* ``mse``: the range whose quantization has the least mean squared error (Banner et al., NeurIPS 2019, by search).
* ``entropy``: the range whose quantized histogram has the least Kullback-Leibler divergence from the original (Migacz, GTC 2017).

Zero always lies in the range, so that zero padding is exact.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgefold.errors import unknown_name
from edgefold.quantize.pt2e import ObserverBase
from edgefold.quantize.scheme import INT8, Grid, QParams

BINS: Final = 4096
CUT: Final = 1e-4  # of the percentile observer
_SMALLEST_SCALE: Final = 1e-30  # far above the denormals of float32, which kernels flush to zero
# Of a tensor that is always zero (a dead ReLU). Any grid holds it, but XNNPACK takes no layer whose products are more than 256
# steps of its output, and the bias of the next layer is rounded to steps of this one.
_SCALE_OF_ZEROS: Final = 2.0**-16
Histogram = NDArray[np.float64]
Range = tuple[float, float]


def qparams_of_range(low: float, high: float, grid: Grid = INT8) -> QParams:
    """The affine parameters that cover [low, high] widened to hold zero; the scale is a float32 value."""
    low, high = min(low, 0.0), max(high, 0.0)
    span = max(-low, high) / grid.qmax if grid.symmetric else (high - low) / (grid.qmax - grid.qmin)
    scale = float(np.float32(max(span, _SMALLEST_SCALE))) if span > 0 else _SCALE_OF_ZEROS
    zero_point = 0 if grid.symmetric else int(np.clip(round(grid.qmin - low / scale), grid.qmin, grid.qmax))
    return QParams(scale, zero_point, grid.qmin, grid.qmax)


class HistogramObserver(ObserverBase):  # type: ignore[misc]  # torchao is untyped
    """Collects the values of one activation (or of several that share parameters); passes its input through."""

    def __init__(self, dtype: torch.dtype = torch.int8, **_: object) -> None:
        super().__init__(dtype)
        self.low = 0.0
        self.high = 0.0
        self.total = 0
        self.counts: Histogram = np.zeros(BINS)  # of the values that are not zero
        self._edge = 0.0  # the histogram covers [-edge, edge)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the values of ``x``, of any shape."""
        values = x.detach().float()
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        # Exact zeros (half of the values after a ReLU) are exact in every range, and a spike in one bin misleads a search.
        self.counts += torch.histc(values[values != 0], BINS, -self._edge, self._edge).numpy()
        self.total += values.numel()
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the whole range, each of shape (1,)."""
        params = qparams_of_range(self.low, self.high)
        return torch.tensor([params.scale]), torch.tensor([params.zero_point], dtype=torch.int64)

    def edges(self) -> Histogram:
        """The edges of the bins, (BINS + 1,)."""
        return np.linspace(-self._edge, self._edge, BINS + 1)

    def centres(self) -> Histogram:
        """The centres of the bins, (BINS,)."""
        edges = self.edges()
        return (edges[:-1] + edges[1:]) / 2

    def clipped_share(self, params: QParams) -> float:
        """The share of values outside the range of ``params``."""
        centres = self.centres()
        low = params.scale * (params.qmin - params.zero_point - 0.5)
        high = params.scale * (params.qmax - params.zero_point + 0.5)
        outside = self.counts[(centres < low) | (centres > high)].sum()
        return float(outside / max(self.total, 1))

    def _widen(self, magnitude: float) -> None:
        if self._edge == 0.0:
            # A power of two, so that every later edge is a multiple of this one.
            self._edge = 2.0 ** np.ceil(np.log2(max(magnitude, 1e-12)))
        while magnitude > self._edge:
            pairs = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4), pairs, np.zeros(BINS // 4)])
            self._edge *= 2


class Rule(Protocol):
    """Takes a range from what was seen, for values that will lie on a grid."""

    def __call__(self, seen: HistogramObserver, grid: Grid = INT8) -> Range:
        """The range."""
        ...


def minmax_range(seen: HistogramObserver, grid: Grid = INT8) -> Range:
    """The whole range."""
    return seen.low, seen.high


def percentile_range(seen: HistogramObserver, grid: Grid = INT8) -> Range:
    """The range without the share `CUT` of the values at the far end of each side."""
    cumulated = np.cumsum(seen.counts) / max(seen.counts.sum(), 1.0)
    edges = seen.edges()
    low = edges[np.searchsorted(cumulated, CUT, side="right")]
    high = edges[min(int(np.searchsorted(cumulated, 1 - CUT)) + 1, BINS)]
    return max(seen.low, float(low)), min(seen.high, float(high))


def mse_range(seen: HistogramObserver, grid: Grid = INT8) -> Range:
    """The range with the least mean squared error of quantization, clipping included."""
    inside = seen.counts > 0
    values, weights = seen.centres()[inside], seen.counts[inside]

    def error(limits: Range) -> float:
        params = qparams_of_range(*limits, grid)
        integers = np.clip(np.round(values / params.scale) + params.zero_point, params.qmin, params.qmax)
        residual = np.abs((integers - params.zero_point) * params.scale - values)
        # Inside the range the error is uniform whatever the bin's centre is: scale^2 / 12.
        squares = np.where(residual <= params.scale / 2, params.scale**2 / 12, residual**2)
        return float((weights * squares).sum())

    return min(_candidates(seen), key=error)


def entropy_range(seen: HistogramObserver, grid: Grid = INT8) -> Range:
    """The range whose quantized histogram diverges least from the clipped original; all of it where the integers are finer."""
    centres = seen.centres()

    def divergence(limits: Range) -> float:
        low, high = limits
        inside = (centres >= low) & (centres <= high)
        original = seen.counts[inside]
        if original.size < grid.levels or not original.any():
            return float("inf")
        reference = original.copy()
        reference[0] += seen.counts[centres < low].sum()
        reference[-1] += seen.counts[centres > high].sum()
        level = np.floor(np.linspace(0, grid.levels, original.size, endpoint=False)).astype(np.intp)
        occupied = original > 0
        sums = np.bincount(level, weights=original, minlength=grid.levels)
        members = np.bincount(level, weights=occupied.astype(np.float64), minlength=grid.levels)
        spread = np.where(occupied, (sums / np.maximum(members, 1))[level], 0.0)
        p, q = reference / reference.sum(), spread / spread.sum()
        both = p > 0
        return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())

    return min(_candidates(seen), key=divergence)


OBSERVERS: Final[dict[str, Rule]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "entropy": entropy_range,
}


def get_observer(name: str) -> Rule:
    """The rule of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return OBSERVERS[name]


def _candidates(seen: HistogramObserver, steps: int = 64) -> list[Range]:
    """Ranges from all of it down to a tenth, both sides shrunk to one magnitude but never beyond what was seen."""
    edge = max(-seen.low, seen.high)
    return [(max(seen.low, -edge * f), min(seen.high, edge * f)) for f in np.linspace(1.0, 0.1, steps)]
