"""How the terminal shows an explanation of INT8: a table of the layers, one of the runtimes, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.report.explanation import Explanation, RuntimeOutlook


def explained(found: Explanation) -> Iterable[RenderableType]:
    """The parts of an explanation, in the order in which they are read."""
    from edgefold.report.explained import rounding
    from edgefold.report.explanation import advice, time_verdict

    yield layers(found)
    where = f"at the output, over {found.samples} samples"
    yield f"{found.scheme}, {rounding(found)}: {found.sensitivity.output_db:.1f} dB {where}"
    yield advice(found)
    if found.float_layers:
        yield f"Left in float: {', '.join(found.float_layers)}"
    if found.runtimes:
        yield runtimes(found.runtimes)
    for each in found.runtimes:
        yield f"{each.format}: {time_verdict(each)}."
        yield from (f"  - {reason}" for reason in each.reasons)
    slow = [(each.format, op) for each in found.runtimes for op in each.slow]
    if slow:
        from edgefold.cli.output import table
        from edgefold.report.table import duration, percent

        lines = [
            (
                form.value,
                op.name,
                op.op,
                duration(op.ns),
                "" if op.float_ns is None else duration(op.float_ns),
                percent(op.share),
                op.why,
            )
            for form, op in slow
        ]
        yield table(("runtime", "module or op", "ops", "INT8", "float", "of the time", "why it is slow"), lines, "lwwrrrw")
    yield f"CPU: {found.cpu}; {found.cpu_reason}"


def layers(found: Explanation) -> RenderableType:
    """The layers, the most sensitive first."""
    from edgefold.cli.output import table
    from edgefold.report.explained import layer_columns, layer_rows

    columns = layer_columns(found)
    return table(("layer", *columns), layer_rows(found), "l" + "r" * len(columns))


def runtimes(found: Iterable[RuntimeOutlook]) -> RenderableType:
    """What INT8 does in each runtime."""
    from edgefold.cli.output import table
    from edgefold.report.table import duration, percent

    return table(
        ("runtime", "float", "INT8", "INT8 / float", "MACs in integers", "conversions", "outside the delegate"),
        [
            (
                each.format.value,
                "" if each.float_ns is None else duration(each.float_ns),
                "" if each.integer_ns is None else duration(each.integer_ns),
                "" if each.ratio is None else f"{each.ratio:.2f}",
                "" if each.integer_mac_share is None else percent(each.integer_mac_share),
                str(each.conversions),
                str(len(each.fallback)),
            )
            for each in found
        ],
        "lrrrrrr",
    )
