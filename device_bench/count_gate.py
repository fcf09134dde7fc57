"""The gate for continuous integration without a board: does an artifact take more ARM instructions than it did?

Counts repeat to a few parts in a hundred thousand, so a gate by them can be a hundred times as fine as one by times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefold.device_bench.baseline import parse_rule
from edgefold.device_bench.counts import InstructionCount
from edgefold.errors import CheckError, UsageError
from edgefold.results import Code


@dataclass(frozen=True, slots=True)
class CountComparison:
    """Two counts on one emulated core. ``ratio`` is instructions of the candidate over those of the baseline."""

    baseline: InstructionCount
    candidate: InstructionCount
    ratio: float
    threshold: float  # a share

    @property
    def more(self) -> bool:
        """Whether the candidate takes more by at least the threshold."""
        return self.ratio >= 1 + self.threshold


def against_counts(counted: InstructionCount, baseline: Sequence[InstructionCount], rule: str) -> CountComparison:
    """A count against the baseline's, at the threshold of a rule like ``more:0.1%``.

    A baseline of one count is compared whatever its file was called; of several, the one of this file name, format and core.

    Raises:
        UsageError: the rule cannot be read, the baseline lacks the count, or the two do not compare: another format, runtime
            version or core, wrong outputs, or counts that spread by more than the rule asks for.
    """
    threshold = parse_rule(rule, "more")
    old = _counterpart(counted, baseline)
    reasons = _incomparable(old, counted, threshold)
    if reasons:
        raise UsageError(
            f"counts of '{counted.artifact}' and '{old.artifact}' cannot be compared: {'; '.join(reasons)}; "
            "count both again alike"
        )
    return CountComparison(old, counted, counted.instructions / old.instructions, threshold)


def check_counts(counted: InstructionCount, baseline: Sequence[InstructionCount], rule: str) -> CountComparison:
    """The same, as a check.

    Raises:
        CheckError: it takes more instructions by the rule.
        UsageError: see `against_counts`.
    """
    found = against_counts(counted, baseline, rule)
    if found.more:
        raise CheckError(
            f"'{counted.artifact}' takes {found.ratio:.5f} times the instructions of '{found.baseline.artifact}' "
            f"on {counted.cpu} ({counted.instructions:,} against {found.baseline.instructions:,}), "
            f"allowed by '{rule}' is less; find the cause, or accept it with a new baseline"
        )
    return found


def _counterpart(counted: InstructionCount, baseline: Sequence[InstructionCount]) -> InstructionCount:
    if len(baseline) == 1:
        return baseline[0]
    same = [each for each in baseline if _key(each) == _key(counted)]
    if len(same) != 1:
        names = ", ".join(sorted(f"{each.artifact} on {each.cpu}" for each in baseline)) or "nothing"
        raise UsageError(
            f"the baseline has {len(same)} counts of '{counted.artifact}' on {counted.cpu}, expected one; it has {names}: "
            "count it again"
        )
    return same[0]


def _key(counted: InstructionCount) -> tuple[str, str, str]:
    return counted.artifact, counted.format.value, counted.cpu


def _incomparable(baseline: InstructionCount, candidate: InstructionCount, threshold: float) -> list[str]:
    """Why two counts do not compare, in words; empty when they do."""
    pairs = {
        "format": (baseline.format, candidate.format),
        "runtime": (baseline.runtime, candidate.runtime),
        "core": (baseline.cpu, candidate.cpu),
    }
    reasons = [f"{name} {old} and {new}" for name, (old, new) in pairs.items() if old != new]
    for each in (baseline, candidate):
        if Code.OUTPUT_MISMATCH in each.codes:
            reasons.append(f"'{each.artifact}' is marked {Code.OUTPUT_MISMATCH}")
        if each.spread > threshold:
            reasons.append(f"'{each.artifact}' spreads by {each.spread * 100:.2g} %, more than the rule's {threshold * 100:g} %")
    return reasons
