"""Which codes a measurement carries, and why: one small test each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from edgefold.device_bench.options import BenchOptions
from edgefold.results import Code, DeviceInfo, Run

MAX_NOISE = 0.10
LOW_BATTERY_PERCENT = 20
MAX_LOAD_SHARE = 0.25  # of the cores busy with other work before the measurement began
THROTTLING_STATUS = 2  # Android: moderate, the first at which the system slows down
THROTTLED_SLOWDOWN, THROTTLED_HEATING_C = 1.10, 5.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that codes are derived from. ``matched`` is ``None`` where there was no reference."""

    runs: tuple[Run, ...]
    noise: float
    states: tuple[DeviceInfo, DeviceInfo, DeviceInfo]  # before, during, after
    options: BenchOptions
    gate_reached: bool
    matched: bool | None
    fallback_ops: tuple[str, ...]


def codes_of(evidence: Evidence) -> tuple[Code, ...]:
    """The codes, in the order in which they are declared."""
    seen = state_codes(evidence.states)
    checks = {
        **seen,
        Code.UNSTABLE: evidence.noise > MAX_NOISE,
        Code.NOT_CONVERGED: not all(run.converged for run in evidence.runs),
        Code.FEW_SAMPLES: _few_samples(evidence.runs, evidence.options),
        Code.THROTTLED: seen[Code.THROTTLED] or _slowed_by_heat(evidence),
        Code.HOT: not evidence.gate_reached,
        Code.FALLBACK_OPS: bool(evidence.fallback_ops),
        Code.OUTPUT_MISMATCH: evidence.matched is False,
        Code.OUTPUT_UNCHECKED: evidence.matched is None,
    }
    return in_order(checks)


def in_order(checks: Mapping[Code, bool]) -> tuple[Code, ...]:
    """The codes that hold, in the order in which they are declared."""
    return tuple(code for code in Code if checks.get(code, False))


def state_codes(states: Sequence[DeviceInfo]) -> dict[Code, bool]:
    """What a device's states say by themselves; they are in order of time, the first from before any work."""
    first, last = states[0], states[-1]
    limits = {core.index: core.max_khz for core in first.cores if core.max_khz}
    limited = any(core.max_khz and core.max_khz < limits.get(core.index, 0) for core in last.cores)
    return {
        Code.THROTTLED: limited or any((state.thermal_status or 0) >= THROTTLING_STATUS for state in states),
        Code.GOVERNOR_NOT_PERFORMANCE: any(_other_governor(state) for state in states),
        Code.FREQUENCY_UNKNOWN: not any(core.current_khz for state in states for core in state.cores),
        Code.LOW_BATTERY: any(0 <= (state.battery_percent or 100) < LOW_BATTERY_PERCENT for state in states),
        Code.LOADED: (first.load_1min or 0.0) > MAX_LOAD_SHARE * max(1, len(first.cores)),
        Code.EMULATED: any(state.emulated for state in states),
    }


def _few_samples(runs: Sequence[Run], options: BenchOptions) -> bool:
    minimum = BenchOptions(threads=options.threads)
    enough = [
        run for run in runs if len(run.samples_ns) >= minimum.min_samples and sum(run.samples_ns) >= minimum.min_time_s * 1e9
    ]
    return len(enough) < minimum.processes


def _slowed_by_heat(evidence: Evidence) -> bool:
    before, _, after = evidence.states
    heated = (after.temperature_c or 0.0) - (before.temperature_c or after.temperature_c or 0.0)
    first, last = evidence.runs[0].samples_ns, evidence.runs[-1].samples_ns
    return heated >= THROTTLED_HEATING_C and median(last) > THROTTLED_SLOWDOWN * median(first)


def _other_governor(state: DeviceInfo) -> bool:
    return any(core.governor not in (None, "performance") for core in state.cores)
