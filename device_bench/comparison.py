"""Is B faster than A on this device? Both are measured side by side, so that whatever drifts meets both alike.

Two files of one format are loaded into one process and sampled in turns A B B A of a few milliseconds; in every other process
B comes first. Each of at least 12 fresh processes gives one ratio. Where a process holds one model (the native runner, files of
two formats), processes themselves run in blocks A B B A, and each block gives one ratio of its medians. Either way a linear drift
over a block cancels out, and the ratios are independent, so their geometric mean has a t interval.

Measured apart from each other, two results only compare when the device, its state and the runtime are the same. Nothing cancels
out of them, so their interval is widened by the A/A noise of both; side by side is the better way to ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from edgefold.artifact import Artifact
from edgefold.device_bench import stats
from edgefold.device_bench.benchmark import host_outputs, with_fallback_ops
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.codes import MAX_NOISE
from edgefold.device_bench.fleet import kept_of
from edgefold.device_bench.gate import ThermalGate
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.method import PlacedCase, assemble, placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.parity import compare_outputs
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.base import Runner
from edgefold.errors import UsageError
from edgefold.results import Code, Comparison, DeviceInfo, Estimate, Measurement, Run, Verdict

DEFAULT_THRESHOLD = 0.01
MIN_BLOCKS = 6
# An interval 1.4 times as wide as that of 95 % is one of 99 %, with ten degrees of freedom. On a machine that does other work the
# threshold alone does not keep false verdicts below 5 %.
CERTAINTY = 1.4
# Codes with which a time is no figure, not that of a device, or not of one in a known state.
SPOILING = (Code.UNSTABLE, Code.THROTTLED, Code.HOT, Code.EMULATED, Code.OUTPUT_MISMATCH)
# States in which two results may compare, but not one of them alone.
STATES = (Code.GOVERNOR_NOT_PERFORMANCE, Code.LOW_BATTERY, Code.LOADED)


def compare(
    a: Artifact | Path | str,
    b: Artifact | Path | str,
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    keep: bool = False,
    kept: list[str] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Two artifacts, interleaved on one device; ``a`` is the baseline.

    ``options.processes`` counts the fresh processes of each; it is raised to what the blocks need (12). With
    ``keep``, what was sent stays on the device; ``kept`` gets the name of the folder, also when an error is raised.

    Raises:
        InputError: a file, the options or the device's name cannot be used.
        RuntimeFailure: a runtime crashed or refused its file.
        DeviceError: the device cannot be reached.
    """
    options = options or BenchOptions(processes=2 * MIN_BLOCKS, min_time_s=0.25)
    cases = [make_case(artifact, seed=options.seed) for artifact in (a, b)]
    with kept_of(open_runner(device, ssh_config=ssh_config, keep=keep), [] if kept is None else kept) as runner:
        launchers = Launchers(runner, worker)
        return compare_cases(cases[0], cases[1], runner, options, launchers, threshold=threshold, progress=progress)


def compare_cases(
    a: Case,
    b: Case,
    runner: Runner,
    options: BenchOptions,
    launchers: Launchers,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """The same for two cases and an open runner."""
    a, b = with_fallback_ops(a, runner), with_fallback_ops(b, runner)
    blocks = max(MIN_BLOCKS, math.ceil(options.processes / 2))
    ways = [launchers.of(case.format) for case in (a, b)]
    with placed(a, runner, ways[0], options) as first, placed(b, runner, ways[1], options) as second:
        before, gate_reached = ThermalGate(runner, options).cool_down()
        together = a.format is b.format and ways[0].racer is not None
        runs: tuple[list[Run], list[Run]] = ([], [])
        logs: list[float] = []
        during = before
        for block in range(blocks):
            logs += (_block_together if together else _block)(first, second, runs, progress)
            if block == blocks // 2:
                during = first.watch()
        states = (before, during, runner.info())
        baseline, candidate = (
            _finish(place, tuple(side), states, gate_reached=gate_reached)
            for place, side in ((first, runs[0]), (second, runs[1]))
        )
    estimate = stats.crossed_ratio(logs[::2], logs[1::2]) if together else stats.mean_ratio(logs)
    codes = tuple(code for code in Code if code in baseline.codes or code in candidate.codes)
    return Comparison(
        baseline=baseline,
        candidate=candidate,
        ratio=estimate,
        verdict=_side_by_side(estimate, threshold, codes),
        threshold=threshold,
        block_ratios=tuple(math.exp(each) for each in logs),
        codes=codes,
    )


def compare_measurements(baseline: Measurement, candidate: Measurement, *, threshold: float = DEFAULT_THRESHOLD) -> Comparison:
    """Two results that were measured apart from each other, such as today's and a stored one.

    The bootstrap over processes knows how much these vary, not how far the device moved between the two measurements. So each
    measurement's A/A noise (the half-width of a 95 % interval, as a share) is added to the half-widths of the interval, in
    quadrature on a logarithmic scale, as independent errors add. `compare`, side by side, needs no such allowance.

    Raises:
        UsageError: they are not comparable: another device, device state, runtime, or number of threads, or one of them is no
            latency to trust.
    """
    reasons = incomparable(baseline, candidate)
    if reasons:
        raise UsageError(
            f"'{candidate.artifact}' and '{baseline.artifact}' cannot be compared: {'; '.join(reasons)}; measure both again alike"
        )
    sides = [[run.samples_ns for run in each.runs] for each in (candidate, baseline)]
    estimate = stats.widened(stats.ratio(sides[0], sides[1]), (baseline.noise, candidate.noise))
    codes = tuple(code for code in Code if code in baseline.codes or code in candidate.codes)
    return Comparison(baseline, candidate, estimate, verdict_of(estimate, threshold), threshold, codes=codes)


def incomparable(baseline: Measurement, candidate: Measurement) -> list[str]:
    """Why two results do not compare, in words; empty when they do."""
    pairs = {
        "device": (baseline.device.url, candidate.device.url),
        "machine": (baseline.device.machine, candidate.device.machine),
        "model": (baseline.device.model, candidate.device.model),
        "SoC": (baseline.device.soc, candidate.device.soc),
        "CPU": (baseline.device.cpu, candidate.device.cpu),
        "system": (baseline.device.os_version, candidate.device.os_version),
        "runtime": (baseline.runtime, candidate.runtime),
        "threads": (baseline.threads, candidate.threads),
        "cores": (baseline.cores, candidate.cores),
        "governors": (_governors(baseline.device), _governors(candidate.device)),
        "largest frequencies": (_limits(baseline.device), _limits(candidate.device)),
    }
    reasons = [f"{name} {old} and {new}" for name, (old, new) in pairs.items() if old != new]
    features = set(baseline.device.features) ^ set(candidate.device.features)
    if features:
        reasons.append(f"CPU features: {', '.join(sorted(features))} only there in one")
    for each, other, place in ((baseline, candidate, "baseline"), (candidate, baseline, "new result")):
        reasons += [f"the {place} is marked {code}{_why(code, each)}" for code in SPOILING if code in each.codes]
        alone = [code for code in STATES if code in each.codes and code not in other.codes]
        reasons += [f"only the {place} is marked {code}" for code in alone]
    return reasons


def verdict_of(ratio: Estimate, threshold: float) -> Verdict:
    """Faster or slower only where the ratio is at least the threshold away from 1 and an interval `CERTAINTY` times as wide
    leaves out 1."""
    if ratio.low <= 1 <= ratio.high or abs(math.log(ratio.value)) < math.log1p(threshold):
        return Verdict.NO_DIFFERENCE
    slower = ratio.value > 1
    reach = math.log(ratio.value / ratio.low) if slower else math.log(ratio.high / ratio.value)
    if abs(math.log(ratio.value)) <= CERTAINTY * reach:
        return Verdict.NO_DIFFERENCE
    return Verdict.SLOWER if slower else Verdict.FASTER


def _side_by_side(ratio: Estimate, threshold: float, codes: Sequence[Code]) -> Verdict:
    """What may be said of two that took turns: nothing of times on an emulator, and not that there is no difference where one of
    ten percent (and more than the threshold) could hide. Noise that meets both alike, such as a drift, is no reason."""
    verdict = verdict_of(ratio, threshold)
    reach = 1 + max(MAX_NOISE, threshold)
    hidden = verdict is Verdict.NO_DIFFERENCE and (ratio.low < 1 / reach or ratio.high > reach)
    return Verdict.CANNOT_TELL if hidden or Code.EMULATED in codes else verdict


def _why(code: Code, measurement: Measurement) -> str:
    if code is not Code.UNSTABLE:
        return ""
    count = len(measurement.runs)
    return f" ({count} processes, expected at least 4)" if count < 4 else f" (A/A noise {measurement.noise * 100:.1f} %)"


def _finish(
    place: PlacedCase, runs: tuple[Run, ...], states: tuple[DeviceInfo, DeviceInfo, DeviceInfo], *, gate_reached: bool
) -> Measurement:
    reference = None if place.runner.url in ("host", "fake") else host_outputs(place.case)
    parity = None if reference is None else compare_outputs(place.case.output_specs, place.outputs(), reference)
    return assemble(place, runs, states, place.memory(), gate_reached=gate_reached, parity=parity)


def _block(first: PlacedCase, second: PlacedCase, runs: tuple[list[Run], list[Run]], progress: Callable[[], None]) -> list[float]:
    """Four processes A B B A; the logarithm of their one ratio."""
    for side in (0, 1, 1, 0):
        runs[side].append((first, second)[side].process())
        progress()
    return [_log_ratio(runs[1][-2:], runs[0][-2:])]


def _block_together(
    first: PlacedCase, second: PlacedCase, runs: tuple[list[Run], list[Run]], progress: Callable[[], None]
) -> list[float]:
    """Two processes with both files, the second with B loaded and begun first; the logarithms of their ratios."""
    (mine, others), forward = first.process_with(second)
    (others_again, mine_again), backward = second.process_with(first)
    runs[0].extend((mine, mine_again))
    runs[1].extend((others, others_again))
    progress()
    return [math.log(forward), -math.log(backward)]


def _log_ratio(candidate: list[Run], baseline: list[Run]) -> float:
    """Mean of the logarithms of the process medians, candidate minus baseline."""
    first, second = (sum(math.log(median(run.samples_ns)) for run in side) / len(side) for side in (candidate, baseline))
    return first - second


def _governors(device: DeviceInfo) -> tuple[str | None, ...]:
    return tuple(core.governor for core in device.cores)


def _limits(device: DeviceInfo) -> tuple[int | None, ...]:
    return tuple(core.max_khz for core in device.cores)
