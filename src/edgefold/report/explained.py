"""Explanations of INT8 as the page shows them: text, cells and one picture a scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgefold.report.charts import RUNTIME_NAMES
from edgefold.report.explanation import Explanation, advice, time_verdict
from edgefold.report.sensitivity_chart import sensitivity_chart
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    from markupsafe import Markup

    from edgefold.quantize.sensitivity_data import LayerSensitivity


@dataclass(frozen=True, slots=True)
class ExplainedRuntime:
    """One runtime: whether INT8 pays there, and why."""

    format: str
    name: str
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainedScheme:
    """One integer scheme."""

    scheme: str
    summary: str
    advice: str
    chart: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runtimes: tuple[ExplainedRuntime, ...]
    cpu: str


def explained_schemes(explanations: Sequence[Explanation]) -> list[ExplainedScheme]:
    """The parts of the page, one a scheme."""
    from markupsafe import Markup

    return [
        ExplainedScheme(
            scheme=found.scheme.upper(),
            summary=_summary(found),
            advice=advice(found),
            # Markup that svg.py has escaped.
            chart=Markup(sensitivity_chart(found.sensitivity)),
            columns=layer_columns(found),
            rows=tuple(layer_rows(found)),
            runtimes=tuple(
                ExplainedRuntime(each.format.value, RUNTIME_NAMES[each.format], time_verdict(each), each.reasons)
                for each in found.runtimes
            ),
            cpu=f"{found.cpu}; {found.cpu_reason}",
        )
        for found in explanations
    ]


def layer_columns(found: Explanation) -> tuple[str, ...]:
    """What is told of each layer after its name; without calibration there are no ranges."""
    ranges = ("range", "clipped") if scheme_of(found.scheme).calibrated else ()
    return ("alone", "up to here", "gain if float", *ranges)


def layer_rows(found: Explanation) -> list[tuple[str, ...]]:
    """The name and the `layer_columns` of each layer, the most sensitive first."""
    width = 1 + len(layer_columns(found))
    return [_layer_cells(layer)[:width] for layer in found.sensitivity.layers]


def _layer_cells(layer: LayerSensitivity) -> tuple[str, ...]:
    return (
        layer.name,
        f"{layer.alone_db:.1f} dB",
        f"{layer.cumulative_db:.1f} dB",
        f"{layer.gain_db:+.1f} dB",
        f"{layer.low:.3g} … {layer.high:.3g}",
        f"{layer.clipped_share * 100:.2f} %",
    )


def rounding(found: Explanation) -> str:
    """How the scheme's numbers were found."""
    return f"ranges by {found.observer}" if found.observer else "without calibration"


def _summary(found: Explanation) -> str:
    left = f" In float by choice: {', '.join(found.float_layers)}." if found.float_layers else ""
    return f"{found.sensitivity.output_db:.1f} dB at the output, over {found.samples} samples; {rounding(found)}.{left}"
