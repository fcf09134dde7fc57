"""The one table of a shipment: format x precision -> size, accuracy, parity, load, latency, speed-up.

`rows` gives it as data, `cells` as text; the terminal, the page and the model card only draw it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgefold.artifact import Format, Precision
from edgefold.report.content import Shipment, Variant
from edgefold.results import NO_LATENCY, Code, Measurement, ParityReport

HEADERS = ("artifact", "size", "accuracy", "parity", "load", "median [95 %]", "vs fp32", "checks")
ALIGN = "lrrrrrrl"  # left for words, right for numbers
UNKNOWN = "–"

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in numbers; ``None`` is what was not measured. ``problem`` is empty where all is well."""

    name: str
    format: Format
    precision: Precision
    passed: bool
    problem: str
    size_bytes: int | None = None
    accuracy: float | None = None
    accuracy_reference: float | None = None
    max_relative_error: float | None = None
    sqnr_db: float | None = None
    max_steps: float | None = None
    load_ns: float | None = None
    first_ns: float | None = None
    median_ns: float | None = None
    interval_ns: tuple[float, float] | None = None
    speedup: float | None = None  # median of fp32 in the same runtime / this median
    peak_rss_bytes: int | None = None
    codes: tuple[Code, ...] = ()


def rows(shipment: Shipment) -> tuple[Row, ...]:
    """The table of a shipment, in its order."""
    return tuple(_row(variant, _baseline(shipment, variant)) for variant in shipment.variants)


def problem(variant: Variant) -> str:
    """Why a variant did not pass, in one sentence; empty when it did."""
    if variant.failure is not None:
        return f"{variant.failure.stage}: {variant.failure.message}"
    if variant.parity is not None and not variant.parity.passed:
        return f"parity: {parity_text(variant.parity)}, expected {variant.parity.criterion}"
    if variant.accuracy is not None and not variant.accuracy.passed:
        seen = variant.accuracy
        return f"accuracy: {percent(seen.value)} against {percent(seen.reference)} in torch, expected {seen.criterion}"
    return "" if variant.artifact is not None else "not made"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one cell a header."""
    return (
        row.name,
        "" if row.size_bytes is None else size(row.size_bytes),
        "" if row.accuracy is None else percent(row.accuracy),
        _parity(row.max_relative_error, row.sqnr_db, row.max_steps),
        _load(row),
        "" if row.median_ns is None or row.interval_ns is None else latency(row.median_ns, row.interval_ns, row.codes),
        "" if row.speedup is None else f"{row.speedup:.2f}×",
        "ok" if row.passed else "FAILED",
    )


def markdown(table: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [HEADERS, tuple("---" for _ in HEADERS), *(cells(row) for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parity_text(report: ParityReport) -> str:
    """The worst of a report's outputs in a few words: SQNR for integers, share of the range for floats."""
    steps = [output.max_steps for output in report.outputs if output.max_steps is not None]
    signal = [output.sqnr_db for output in report.outputs if output.sqnr_db is not None]
    relative = max((output.max_relative_error for output in report.outputs), default=0.0)
    return _parity(relative, min(signal, default=None), max(steps, default=None))


def size(value: int) -> str:
    """Bytes for people: 812 kB, 3.4 MB (powers of ten, as app stores count)."""
    for unit, factor in (("B", 1), ("kB", 1e3), ("MB", 1e6)):
        if value / factor < 999.5:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e9:.3g} GB"


def duration(ns: float) -> str:
    """Nanoseconds for people, with three digits: 412 µs, 1.25 ms, 2.10 s."""
    for unit, factor in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if ns / factor < 999.5:
            return f"{_digits(ns / factor)} {unit}"
    return f"{_digits(ns / 1e9)} s"


def latency(median_ns: float, interval_ns: tuple[float, float], codes: Collection[Code]) -> str:
    """A median with its interval, as far as the codes let it be shown; ``emulated`` where there is no latency at all."""
    middle = median(median_ns, codes)
    return middle if Code.EMULATED in codes else f"{middle} [{duration(interval_ns[0])}, {duration(interval_ns[1])}]"


def median(median_ns: float, codes: Collection[Code]) -> str:
    """A median alone. Of an unstable one, which would not repeat, only the interval is known."""
    return "emulated" if Code.EMULATED in codes else "unstable" if Code.UNSTABLE in codes else duration(median_ns)


def known(value: N | None, text: Callable[[N], str]) -> str:
    """A value as text, or a dash where nothing tells it."""
    return UNKNOWN if value is None else text(value)


def same_top1(share: float | None, clear: float | None, close: int | None) -> str:
    """How often two agree on the class: where the best two are clearly apart, and how many samples are too close to count."""
    if share is None:
        return ""
    if not close:
        return percent(share)
    return f"{'' if clear is None else f'{percent(clear)} where clear, '}{close} too close"


def percent(share: float) -> str:
    """A share as percent with one decimal."""
    return f"{share * 100:.1f} %"


def slug(name: str) -> str:
    """A name that is safe as a file name everywhere: ``timm:mobilenetv3`` -> ``timm-mobilenetv3``."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "model"


def _row(variant: Variant, baseline: Measurement | None) -> Row:
    parity, measured, artifact = variant.parity, variant.measurement, variant.artifact
    outputs = () if parity is None else parity.outputs
    return Row(
        name=variant.name,
        format=variant.format,
        precision=variant.precision,
        passed=variant.passed,
        problem=problem(variant),
        size_bytes=None if artifact is None else artifact.size_bytes,
        accuracy=None if variant.accuracy is None else variant.accuracy.value,
        accuracy_reference=None if variant.accuracy is None else variant.accuracy.reference,
        max_relative_error=max((output.max_relative_error for output in outputs), default=None),
        sqnr_db=min((output.sqnr_db for output in outputs if output.sqnr_db is not None), default=None),
        max_steps=max((output.max_steps for output in outputs if output.max_steps is not None), default=None),
        load_ns=None if measured is None else measured.load_ns,
        first_ns=None if measured is None else measured.first_ns,
        median_ns=None if measured is None else measured.median_ns,
        interval_ns=None if measured is None else measured.interval_ns,
        speedup=None if measured is None or baseline is None else baseline.median_ns / measured.median_ns,
        peak_rss_bytes=None if measured is None else measured.peak_rss_bytes,
        codes=() if measured is None else measured.codes,
    )


def _baseline(shipment: Shipment, variant: Variant) -> Measurement | None:
    """The fp32 measurement that a variant may be compared with: same runtime, device and threads, and both medians
    are latencies."""
    measured = variant.measurement
    if measured is None or NO_LATENCY & set(measured.codes):
        return None
    for other in shipment.variants:
        if other.format == variant.format and other.precision == Precision.FP32 and other.measurement is not None:
            alike = _conditions(other.measurement) == _conditions(measured)
            return other.measurement if alike and not NO_LATENCY & set(other.measurement.codes) else None
    return None


def _conditions(measured: Measurement) -> tuple[str, str, int]:
    return measured.runtime, measured.device.url, measured.threads


def _parity(relative: float | None, sqnr_db: float | None, steps: float | None) -> str:
    if steps is not None:
        signal = "exact" if sqnr_db is None else f"{sqnr_db:.1f} dB"
        return f"{signal}, {steps:.3g} LSB"
    if relative is None:
        return ""
    return "exact" if relative == 0 else f"{relative:.1e} of range"


def _load(row: Row) -> str:
    if row.load_ns is None:
        return ""
    return UNKNOWN if Code.EMULATED in row.codes else duration(row.load_ns)


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"
