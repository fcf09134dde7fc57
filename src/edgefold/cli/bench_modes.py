"""What each way of `edgefold bench` has no use for. An option that would be ignored is refused: a gate that compares nothing and
a device that is never asked must not end as if all were well."""

from __future__ import annotations

from collections.abc import Mapping

from edgefold.errors import UsageError

# Why, and what is refused.
_IGNORED = {
    "--count": (
        "counts on an emulated core with one thread",
        ("--device", "--threads", "--cores", "--processes", "--max-secs", "--worker", "--keep", "--ssh-config"),
    ),
    "--sustained": (
        "gives a curve, which is compared with nothing and whose length is the measuring time",
        ("--baseline", "--fail-on", "--processes", "--max-secs", "--keep"),
    ),
    "--tool": ("runs a program of another maker", ("--worker", "--keep")),
}


def refuse_ignored(ways: Mapping[str, bool], given: Mapping[str, bool]) -> None:
    """Refuses what does not go together.

    Args:
        ways: which of ``--count``, ``--sustained`` and ``--tool`` are wanted; without any of them a latency is measured.
        given: which other options have a value that is not their default.

    Raises:
        UsageError: two ways at once, an option that the way ignores, a rule without a baseline, a core without a count.
    """
    wanted = [way for way, there in ways.items() if there]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} do not go together; give one of them")
    for way in wanted:
        reason, ignored = _IGNORED[way]
        found = [name for name in ignored if given[name]]
        if found:
            raise UsageError(f"{way} {reason}, and {', '.join(found)} would be ignored; leave {' and '.join(found)} out")
    if given["--fail-on"] and not given["--baseline"]:
        raise UsageError("--fail-on says what fails against a baseline, and none is given; add --baseline FILE")
    if given["--cpu"] and "--count" not in wanted:
        raise UsageError("--cpu is the core on which instructions are counted; add --count instructions, or leave it out")
