"""Columns of an image as channels: the arithmetic of a convolution that reads and writes several columns at a time.

An NHWC row of W columns with C channels is, in memory, a row of W / g columns with g·C channels, where g = s·q columns belong
to q outputs with stride s. Output j of a group, channel n, becomes channel j·N + n of a convolution with stride 1 along the row,
whose tap t at column u of the group has the weight of the tap

    k = (t + first)·g + u − s·j + p,      first = ⌊−p / g⌋

of the original one with padding p, or zero where that has no such tap. The sums are the same integers, of more products: that is
for CPUs whose kernels take many channels at a time, and as long for few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """A convolution along the row: C channels in, N out, kernel K, stride s, ``left`` columns of padding, W columns to W / s."""

    channels: int
    outputs: int
    kernel: int
    stride: int
    left: int
    width: int

    def taps(self, q: int) -> range:
        """The groups that a group of ``q`` outputs reads, relative to its own."""
        group = self.stride * q
        return range(-self.left // group, (self.stride * (q - 1) - self.left + self.kernel - 1) // group + 1)

    def grouped(self, q: int) -> Row:
        """The same row in groups of ``q`` outputs."""
        group, taps = self.stride * q, self.taps(q)
        return Row(self.channels * group, self.outputs * q, len(taps), 1, -taps[0], self.width // group)

    def best(self, cost: Callable[[Row], float], now: float | None = None) -> int | None:
        """The outputs of a group with which the row costs least; ``None`` where it gains nothing.

        Args:
            cost: what a row costs.
            now: what this one costs as it is, where that is not ``cost`` of it.
        """
        counts = (q for q in range(1, self.width // self.stride + 1) if self.width % (self.stride * q) == 0)
        costs = {q: cost(self.grouped(q)) for q in counts}
        best = min(costs, key=costs.__getitem__, default=None)
        return best if best is not None and costs[best] < (cost(self) if now is None else now) else None

    def weight(self, weight: NDArray[np.generic], q: int) -> NDArray[np.generic]:
        """The weight (q·N, kh, taps, g·C) of the groups, from (N, kh, kw, C)."""
        group, taps = self.stride * q, self.taps(q)
        wide = np.zeros((q, weight.shape[0], weight.shape[1], len(taps), group, self.channels), weight.dtype)
        for place, tap in enumerate(taps):
            for column in range(group):
                for output in range(q):
                    k = tap * group + column - self.stride * output + self.left
                    if 0 <= k < self.kernel:
                        wide[output, :, :, place, column] = weight[:, :, k]
        return wide.reshape(q * weight.shape[0], weight.shape[1], len(taps), group * self.channels)
