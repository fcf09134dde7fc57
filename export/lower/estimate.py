"""A time for every lowering of every layer, from its multiply-accumulates: for layers that no table has.

    time = Σ over ops ( macs / rate(op) + elements · move + overhead )

The rate of a convolution falls with the output channels n of a group, because its kernel works on tiles of channels:
rate = peak · n / (n + half). What differs between runtimes is ``half`` of the group convolution: large for ONNX
Runtime's INT8 kernel, which runs one im2col and one small matrix product a group. Where a runtime's fast group
convolution needs groups of a multiple of so many channels, other groups run at a lower rate, and the tensors around them are
reordered. Only ratios between the lowerings of one layer matter.

The constants stand for a CPU that nothing is known of; `fitted` finds those of a CPU from the layers that were measured on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgefold.artifact import Format, Precision
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.plan import Lowering
from edgefold.schemes import scheme_of


@dataclass(frozen=True, slots=True)
class Rule:
    """The constants of one runtime in one number format."""

    peak: float  # multiply-accumulates a ns of a wide plain convolution
    half: float  # output channels at which a plain convolution has half of it
    half_group: float  # the same for one group of a group convolution
    move: float  # ns an element of an add, concat or slice
    overhead: float  # ns an op
    tile: int = 1  # the fast group convolution takes multiples of so many channels


# What a group convolution off the tile takes more: time of a multiply-add over that at the peak, and passes over the output.
OFF_TILE: Final = 5.0
REORDERS: Final = 4.0

RULES: Final[dict[tuple[Format, bool], Rule]] = {
    (Format.ONNX, False): Rule(60.0, 8.0, 22.0, 0.15, 2_000.0, tile=8),
    (Format.ONNX, True): Rule(450.0, 32.0, 80.0, 0.05, 3_000.0),
    (Format.TFLITE, False): Rule(60.0, 8.0, 10.0, 0.15, 1_000.0),
    (Format.TFLITE, True): Rule(200.0, 16.0, 16.0, 0.05, 1_000.0),
    (Format.EXECUTORCH, False): Rule(60.0, 8.0, 10.0, 0.15, 1_000.0),
    (Format.EXECUTORCH, True): Rule(200.0, 16.0, 16.0, 0.05, 1_000.0),
}
# TFLite's reference kernels for 16-bit activations: every multiply-add takes its time.
REFERENCE: Final = Rule(2.0, 0.1, 0.1, 1.5, 500.0)


def rule_for(format: Format, precision: Precision) -> Rule:
    """The rule of a runtime on any CPU; precisions that compute in float share one."""
    scheme = scheme_of(precision)
    return REFERENCE if scheme.activation_bits == 16 else RULES[format, scheme.integer]


def estimate_ns(rule: Rule, geometry: LayerGeometry, lowering: Lowering) -> float:
    """The estimated time of one layer."""
    positions = math.prod(geometry.out_space)
    taps = math.prod(geometry.kernel)
    outputs = positions * geometry.out_channels
    if lowering is Lowering.DENSE or not geometry.groups:
        return _conv(rule, geometry.in_channels * geometry.out_channels * taps * positions, geometry.out_channels, rule.half)
    time = 0.0
    if lowering is Lowering.SPLIT:
        for reads, writes in geometry.groups:
            time += _conv(rule, reads * writes * taps * positions, writes, rule.half) + rule.overhead
        time += rule.overhead + rule.move * (outputs + geometry.in_channels * math.prod(geometry.space))
    else:
        reads, writes = geometry.widest_group
        macs = reads * writes * len(geometry.groups) * taps * positions
        time += _conv(rule, macs, writes, rule.half_group)
        if reads % rule.tile or writes % rule.tile:
            time += OFF_TILE * macs / rule.peak + REORDERS * rule.move * outputs
        if not geometry.equal_groups:  # channels are gathered into the padded groups, and out of them
            moved = reads * len(geometry.groups) * math.prod(geometry.space) + outputs
            time += 2 * (rule.move * moved + 4.0 * rule.overhead)
    if geometry.point:
        point = _conv(rule, geometry.in_channels * geometry.out_channels * positions, geometry.out_channels, rule.half)
        time += point + rule.overhead + rule.move * outputs
    return time


def gather_ns(rule: Rule, elements: int) -> float:
    """The estimated time of a channel gather of so many elements."""
    return 2.0 * rule.move * elements + 4.0 * rule.overhead


def gather_limit(rule: Rule, budget_ns: float) -> int:
    """How many elements a gather may move within a time; below 0 none."""
    return math.floor((budget_ns - 4.0 * rule.overhead) / (2.0 * rule.move))


def _conv(rule: Rule, macs: int, writes: int, half: float) -> float:
    return macs / (rule.peak * writes / (writes + half)) + rule.overhead
