"""The gate for continuous integration: is anything slower than it was?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from edgefold.device_bench.comparison import compare_measurements
from edgefold.errors import CheckError, UsageError
from edgefold.results import Comparison, Measurement, Verdict

Kind = Literal["slower", "more"]
RULE = re.compile(r"(slower|more):(\d+(?:\.\d+)?)%")
# What a rule is for, and an example.
KINDS = {"slower": ("times", "slower:3%"), "more": ("instruction counts", "more:0.1%")}


def parse_rule(rule: str, kind: Kind = "slower") -> float:
    """The share in a rule like ``slower:3%`` (of times) or ``more:0.1%`` (of instruction counts).

    Raises:
        UsageError: it is no such rule, or one of the other kind.
    """
    match = RULE.fullmatch(rule.strip())
    what, example = KINDS[kind]
    if match is None or not 0 < float(match[2]) < 1000:
        raise UsageError(f"rule '{rule}' cannot be read; expected {kind}:PERCENT%, such as {example}")
    if match[1] != kind:
        raise UsageError(f"rule '{rule}' is for {KINDS[match[1]][0]}, and {what} are compared; expected {kind}:PERCENT%")
    return float(match[2]) / 100


def against_baseline(measurements: Sequence[Measurement], baseline: Sequence[Measurement], rule: str) -> list[Comparison]:
    """Each measurement against the baseline's of the same artifact, format and device, at the rule's threshold.

    Raises:
        UsageError: the baseline lacks one, or the two are not comparable (the reason is in the message).
    """
    threshold = parse_rule(rule)
    known = {_key(each): each for each in baseline}
    comparisons = []
    for each in measurements:
        old = known.get(_key(each))
        if old is None:
            names = ", ".join(sorted({f"{entry.artifact} on {entry.device.url}" for entry in baseline})) or "nothing"
            raise UsageError(f"the baseline has no '{each.artifact}' on {each.device.url}; it has {names}: measure it again")
        comparisons.append(compare_measurements(old, each, threshold=threshold))
    return comparisons


def check_baseline(measurements: Sequence[Measurement], baseline: Sequence[Measurement], rule: str) -> list[Comparison]:
    """The same, as a check.

    Raises:
        CheckError: at least one artifact is slower by the rule.
        UsageError: see `against_baseline`.
    """
    comparisons = against_baseline(measurements, baseline, rule)
    slower = [each for each in comparisons if each.verdict is Verdict.SLOWER]
    if slower:
        words = "; ".join(
            f"'{each.candidate.artifact}' takes {each.ratio.value:.3f} times as long "
            f"(95 % interval {each.ratio.low:.3f} to {each.ratio.high:.3f})"
            for each in slower
        )
        raise CheckError(f"{words}, allowed by '{rule}' is less; find the cause, or accept it with a new baseline")
    return comparisons


def _key(measurement: Measurement) -> tuple[str, str, str]:
    return measurement.artifact, measurement.format.value, measurement.device.url
