"""What a reader wants to know first, in a few sentences that are all true of the table below them."""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.artifact import Precision
from edgefold.report.content import Shipment
from edgefold.report.table import Row, duration, percent, rows, size
from edgefold.results import NO_LATENCY


@dataclass(frozen=True, slots=True)
class Verdict:
    """The head line, what stands behind it, and one problem a line."""

    passed: bool
    headline: str
    findings: tuple[str, ...]
    problems: tuple[str, ...]


def verdict(shipment: Shipment) -> Verdict:
    """The verdict on a shipment."""
    table = rows(shipment)
    good = [row for row in table if row.passed]
    headline = f"{len(good)} of {len(table)} artifacts pass all checks"
    findings = tuple(text for text in (_fastest(good), _smallest(good), _accuracy(table), _slower(table)) if text)
    problems = tuple(f"{row.name}: {row.problem}" for row in table if not row.passed)
    return Verdict(len(good) == len(table), headline, findings, problems)


def _fastest(good: list[Row]) -> str:
    timed = [(row.median_ns, row) for row in good if row.median_ns is not None and not NO_LATENCY & set(row.codes)]
    if not timed:
        return ""
    median_ns, row = min(timed, key=lambda pair: pair[0])
    against = (
        f", {row.speedup:.2f}× the speed of fp32 in the same runtime" if row.speedup and row.precision != Precision.FP32 else ""
    )
    return f"Fastest: {row.name} with a median of {duration(median_ns)}{against}."


def _smallest(good: list[Row]) -> str:
    sized = [(row.size_bytes, row) for row in good if row.size_bytes is not None]
    if not sized:
        return ""
    size_bytes, row = min(sized, key=lambda pair: pair[0])
    return f"Smallest: {row.name} with {size(size_bytes)}."


def _accuracy(table: tuple[Row, ...]) -> str:
    lost = [
        (row.accuracy_reference - row.accuracy, row.accuracy_reference, row.name)
        for row in table
        if row.accuracy is not None and row.accuracy_reference is not None
    ]
    if not lost:
        return ""
    most, reference, name = max(lost)
    if most <= 0:
        return f"Accuracy: no artifact is below the {percent(reference)} of the float network in torch."
    return f"Accuracy: at most {most * 100:.2f} points below the {percent(reference)} of the float network in torch ({name})."


def _slower(table: tuple[Row, ...]) -> str:
    slow = [row.name for row in table if row.speedup is not None and row.speedup < 1 and row.precision != Precision.FP32]
    return f"Slower than fp32 in the same runtime: {', '.join(slow)}." if slow else ""
