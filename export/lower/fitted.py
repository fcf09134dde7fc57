"""The constants of the estimate, fitted to the layers that were measured on a CPU.

Rates differ between CPUs by more than between lowerings: with AMX or VNNI a dense int8 convolution outruns one of a quarter of
its multiply-accumulates in groups, without them it does not. So layers that a table lacks are estimated with a rule that
explains the layers that it has: least squares over the logarithms of the times, where a bad row counts little (soft L1) and a
constant that the rows say nothing of stays near that of any CPU.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Final

import numpy as np

from edgefold.artifact import Format, Precision
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.estimate import Rule, estimate_ns, rule_for
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.plan import Lowering
from edgefold.schemes import scheme_of

# With fewer layers there are as many constants as facts.
MIN_LAYERS: Final = 8
CONSTANTS: Final = ("peak", "half", "half_group", "move", "overhead")
TILES: Final = (1, 8, 16)  # SIMD widths in channels
# Another tile has to explain the times so much better: it changes the order of candidates at once.
TILE_GAIN: Final = 0.85
# How much being off a constant of any CPU weighs against being off a measured time, both as logarithms.
STAY: Final = 0.3
SOFT: Final = 0.2  # a row that is off by more than this share counts less

Row = tuple[str, Lowering, float]


def fitted_rule(table: CostTable, format: Format, precision: Precision) -> Rule | None:
    """The rule of a table's CPU for one runtime, None where the table has too few layers of it."""
    kernels = _kernels(precision)
    rows = tuple(
        (layer, lowering, ns)
        for (layer, lowering, of, numbers), ns in sorted(table.times_ns.items())
        if of is format and _kernels(numbers) == kernels
    )
    return _fit(rule_for(format, precision), rows) if len({layer for layer, *_ in rows}) >= MIN_LAYERS else None


def _kernels(precision: Precision) -> tuple[bool, int]:
    """What precisions with the same kernels have in common."""
    scheme = scheme_of(precision)
    return scheme.integer, scheme.activation_bits


@functools.lru_cache(maxsize=64)
def _fit(start: Rule, rows: tuple[Row, ...]) -> Rule:
    from scipy.optimize import least_squares

    layers = [(LayerGeometry.parse(layer), lowering, math.log(ns)) for layer, lowering, ns in rows]
    origin = np.log([getattr(start, name) for name in CONSTANTS])

    def rule(logs: np.typing.NDArray[np.float64], tile: int) -> Rule:
        return replace(start, tile=tile, **dict(zip(CONSTANTS, np.exp(logs).tolist(), strict=True)))

    def residuals(logs: np.typing.NDArray[np.float64], tile: int) -> np.typing.NDArray[np.float64]:
        candidate = rule(logs, tile)
        off = [math.log(estimate_ns(candidate, geometry, lowering)) - log_ns for geometry, lowering, log_ns in layers]
        return np.concatenate([off, STAY * (logs - origin)])

    best, least = start, math.inf
    for tile in (start.tile, *(tile for tile in TILES if tile != start.tile)):
        found = least_squares(residuals, origin, args=(tile,), loss="soft_l1", f_scale=SOFT)
        if found.cost < (least if tile == start.tile else TILE_GAIN * least):
            best, least = rule(found.x, tile), float(found.cost)
    return best
