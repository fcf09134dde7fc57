"""What `edgefold bench` and `compare` found, for people: tables and lines. An emulator's time is no latency of any device, and a
median that does not repeat is no figure to trust, so neither is shown as one; ``--json`` has all numbers, with their codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgefold.results import Code

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.device_bench import CountComparison, InstructionCount, SustainedResult
    from edgefold.results import Comparison, Measurement

EMULATED = "emulated"
HEADERS = (
    *("artifact", "device", "runtime", "threads", "load", "first", "median [95 %]", "p90", "peak memory", "noise"),
    "steps off",
)


def measured_table(measured: list[tuple[str, Measurement]]) -> Iterable[RenderableType]:
    """One line a measurement, and below the codes of each: in a column of their own there is no room for them."""
    from edgefold.cli.output import table

    yield table(HEADERS, [_measured(name, found) for name, found in measured], "lllrrrrrrrr")
    yield from (f"{name} on {found.device.url}: {' '.join(found.codes)}" for name, found in measured if found.codes)


def compared_lines(found: Comparison) -> Iterable[RenderableType]:
    """The verdict, the ratio with its interval, the two medians."""
    from edgefold.report.table import median

    ratio, codes = found.ratio, f" ({' '.join(found.codes)})" if found.codes else ""
    yield f"{found.candidate.artifact} against {found.baseline.artifact} on {found.candidate.device.url}: {found.verdict}{codes}"
    if Code.EMULATED in found.codes:
        yield "time ratio and medians: emulated; compare what an emulator can tell with: edgefold bench FILE --count instructions"
        return
    yield f"time ratio {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], threshold {found.threshold * 100:g} %"
    yield "medians " + " and ".join(median(each.median_ns, each.codes) for each in (found.candidate, found.baseline))


def gate_line(found: Comparison) -> str:
    """What a gate let pass, in one line."""
    ratio = found.ratio
    return (
        f"{found.candidate.artifact} on {found.candidate.device.url} takes {ratio.value:.3f} times as long as its baseline "
        f"(95 % interval {ratio.low:.3f} to {ratio.high:.3f}): {found.verdict} at {found.threshold * 100:g} %"
    )


def count_gate_line(found: CountComparison) -> str:
    """The same of two instruction counts."""
    return (
        f"{found.candidate.artifact} takes {found.ratio:.5f} times the instructions of {found.baseline.artifact} "
        f"on {found.candidate.cpu}, at most {found.threshold * 100:g} % more allowed"
    )


def curve_table(curve: SustainedResult) -> Iterable[RenderableType]:
    """The curve of a long run, and what it says."""
    from edgefold.cli.output import table
    from edgefold.report.table import duration, percent

    emulated = Code.EMULATED in curve.codes
    lines = [
        (
            f"{point.at_s:.0f} s",
            EMULATED if emulated else duration(point.median_ns),
            "" if point.temperature_c is None else f"{point.temperature_c:.0f} °C",
            "" if point.frequency_khz is None else f"{point.frequency_khz / 1000:.0f} MHz",
        )
        for point in curve.points
    ]
    yield table(("at", "median", "temperature", "frequency"), lines, "rrrr", title=f"{curve.artifact} on {curve.device}")
    kept = EMULATED if emulated else f"{percent(curve.kept_share)}{', throttled' if curve.throttled else ''}"
    yield f"speed kept: {kept}" + (f" ({' '.join(curve.codes)})" if curve.codes else "")


def count_table(counted: InstructionCount) -> Iterable[RenderableType]:
    """Instructions by kind."""
    from edgefold.cli.output import table

    lines = [(kind, f"{number:,}", f"{counted.first.get(kind, 0):,}") for kind, number in counted.counts.items()]
    yield table(("kind", "an inference", "the first one"), lines, "lrr", title=f"{counted.artifact} on an emulated {counted.cpu}")
    yield f"spread {counted.spread * 100:.4f} %; a cost, not a latency"


def _measured(name: str, found: Measurement) -> tuple[str, ...]:
    from edgefold.report.table import UNKNOWN, duration, known, latency, size

    emulated, unstable = Code.EMULATED in found.codes, Code.UNSTABLE in found.codes
    p90 = "" if found.p90_ns is None else duration(found.p90_ns.value)
    return (
        name,
        found.device.url,
        found.runtime,
        str(found.threads),
        known(None if emulated else found.load_ns, duration),
        known(None if emulated else found.first_ns, duration),
        latency(found.median_ns, found.interval_ns, found.codes),
        UNKNOWN if emulated or unstable else p90,
        known(found.peak_rss_bytes, size),
        UNKNOWN if emulated else f"{found.noise * 100:.1f} %",
        "" if found.max_steps is None else f"{found.max_steps:g}",
    )
