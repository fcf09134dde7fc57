"""The gate for continuous integration without a board: does an artifact take more ARM instructions than it did?

Counts repeat to a few parts in a hundred thousand, so a gate by them can be a hundred times as fine as one by times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgefold.artifact import Format
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
    old = counterpart(counted.artifact, counted.format, counted.cpu, baseline, rule)
    _refuse(counted.artifact, old, {"runtime": (old.runtime, counted.runtime)}, (old, counted), threshold)
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


def counterpart(artifact: str, format: Format, cpu: str, baseline: Sequence[InstructionCount], rule: str) -> InstructionCount:
    """The baseline's count that one of this file on this core will be compared with, by all that is known before the counting.

    Raises:
        UsageError: see `against_counts`.
    """
    threshold = parse_rule(rule, "more")
    old = _of(artifact, format, cpu, baseline)
    _refuse(artifact, old, {"format": (old.format, format), "core": (old.cpu, cpu)}, (old,), threshold)
    return old


def _of(artifact: str, format: Format, cpu: str, baseline: Sequence[InstructionCount]) -> InstructionCount:
    if len(baseline) == 1:
        return baseline[0]
    same = [each for each in baseline if (each.artifact, each.format, each.cpu) == (artifact, format, cpu)]
    if len(same) != 1:
        names = ", ".join(sorted(f"{each.artifact} on {each.cpu}" for each in baseline)) or "nothing"
        raise UsageError(
            f"the baseline has {len(same)} counts of '{artifact}' on {cpu}, expected one; it has {names}: count it again"
        )
    return same[0]


def _refuse(
    artifact: str,
    baseline: InstructionCount,
    pairs: dict[str, tuple[str, str]],
    counts: Sequence[InstructionCount],
    threshold: float,
) -> None:
    """Raises UsageError where the pairs differ, or one of the counts is wrong or spreads too much."""
    reasons = [f"{name} {old} and {new}" for name, (old, new) in pairs.items() if old != new]
    reasons += [f"'{each.artifact}' is marked {Code.OUTPUT_MISMATCH}" for each in counts if Code.OUTPUT_MISMATCH in each.codes]
    if reasons:
        raise UsageError(
            f"counts of '{artifact}' and '{baseline.artifact}' cannot be compared: {'; '.join(reasons)}; count both again alike"
        )
    widest = max(counts, key=lambda each: each.spread)
    if widest.spread > threshold:
        # A runtime's own spread: it would be there in another count, too.
        enough = (math.floor(widest.spread * 1000) + 1) / 10
        raise UsageError(
            f"the count of '{widest.artifact}' spreads by {widest.spread * 100:.2g} % from one inference to the next, more than "
            f"the rule's {threshold * 100:g} %; ask for more, as in more:{enough:g}%"
        )
