"""Why INT8 costs accuracy and whether it saves time, as data: what `edgefold quantize --explain` and the report show."""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.artifact import Format, Precision
from edgefold.quantize.sensitivity_data import LayerSensitivity, Sensitivity


@dataclass(frozen=True, slots=True)
class SlowOp:
    """Time that INT8 loses in one module (or in one kind of op, where the runtime does not tell the module).

    ``share`` is of the INT8 file's time by op; ``float_ns`` is the time of the same module in the float file, ``None`` where it
    has none or is not known.
    """

    name: str
    op: str
    ns: int
    share: float
    float_ns: int | None
    why: str


@dataclass(frozen=True, slots=True)
class RuntimeOutlook:
    """What INT8 does in one runtime. ``float_ns`` and ``integer_ns`` are medians on the device, ``None`` if not measured.

    ``reasons`` are sentences, the weightiest first.
    """

    format: Format
    integer_mac_share: float | None
    conversions: int  # between float and integers, inside the file
    fallback: tuple[str, ...]  # ops outside the delegate, as "module (op)"
    float_ns: float | None = None
    integer_ns: float | None = None
    slow: tuple[SlowOp, ...] = ()
    reasons: tuple[str, ...] = ()
    failure: str = ""  # why the file could not be made, inspected or measured

    @property
    def ratio(self) -> float | None:
        """Time of INT8 over time of float; below 1 it pays."""
        return None if self.float_ns is None or self.integer_ns is None else self.integer_ns / self.float_ns


@dataclass(frozen=True, slots=True)
class Explanation:
    """One integer scheme of one network. SQNR is over ``samples`` inputs; ``float_layers`` were left float by choice."""

    scheme: Precision
    samples: int
    observer: str
    sensitivity: Sensitivity
    cpu: str
    cpu_pays: bool  # it has instructions made for 8-bit products
    cpu_reason: str
    runtimes: tuple[RuntimeOutlook, ...] = ()
    float_layers: tuple[str, ...] = ()


def best_exclusion(sensitivity: Sensitivity) -> LayerSensitivity | None:
    """The layer whose exclusion gains most; ``None`` where none gains as much as a tenth of a decibel."""
    best = max(sensitivity.layers, key=lambda layer: layer.gain_db, default=None)
    return best if best is not None and best.gain_db >= 0.1 else None


def advice(explanation: Explanation) -> str:
    """Which layer to exclude and what that gains, as a sentence."""
    sensitivity = explanation.sensitivity
    best = best_exclusion(sensitivity)
    if best is None:
        return f"No single layer is to blame: leaving any one of them in float gains less than 0.1 dB ({_db(sensitivity)})."
    after = sensitivity.output_db + best.gain_db
    return (
        f"Leaving '{best.name}' in float gains {best.gain_db:.1f} dB at the output "
        f"({sensitivity.output_db:.1f} → {after:.1f} dB): --exclude {best.name}"
    )


def _db(sensitivity: Sensitivity) -> str:
    return f"{sensitivity.output_db:.1f} dB at the output"


def time_verdict(outlook: RuntimeOutlook) -> str:
    """Whether INT8 saves time in a runtime, in a few words."""
    if outlook.failure:
        return outlook.failure.rstrip(".")
    ratio = outlook.ratio
    if ratio is None:
        return "not measured"
    if ratio < 0.95:
        return f"INT8 pays, with {ratio:.2f} times the time of float"
    return f"INT8 does not pay, with {ratio:.2f} times the time of float"
