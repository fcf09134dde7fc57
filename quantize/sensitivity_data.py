"""What `edgefold.quantize.sensitivity` finds, as data: read by the report, which needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """One conv or linear, with the activation that is fused into it."""

    name: str  # module path
    node: str  # name in the canonical graph
    alone_db: float
    cumulative_db: float
    gain_db: float
    low: float  # range that the integers of its output cover
    high: float
    clipped_share: float
    index: int = 0  # its place in the network


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The report; ``layers`` are ranked, the most sensitive first."""

    output_db: float
    layers: tuple[LayerSensitivity, ...]
