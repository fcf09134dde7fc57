"""Explanations of INT8 as the page shows them: text, cells and one picture a scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgefold.report.charts import RUNTIME_NAMES
from edgefold.report.explanation import Explanation, advice, time_verdict
from edgefold.report.sensitivity_chart import sensitivity_chart

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
            rows=tuple(layer_cells(layer) for layer in found.sensitivity.layers),
            runtimes=tuple(
                ExplainedRuntime(each.format.value, RUNTIME_NAMES[each.format], time_verdict(each), each.reasons)
                for each in found.runtimes
            ),
            cpu=f"{found.cpu}; {found.cpu_reason}",
        )
        for found in explanations
    ]


def layer_cells(layer: LayerSensitivity) -> tuple[str, ...]:
    """Name, alone, up to here, gain if float, range, clipped."""
    return (
        layer.name,
        f"{layer.alone_db:.1f} dB",
        f"{layer.cumulative_db:.1f} dB",
        f"{layer.gain_db:+.1f} dB",
        f"{layer.low:.3g} … {layer.high:.3g}",
        f"{layer.clipped_share * 100:.2f} %",
    )


def _summary(found: Explanation) -> str:
    left = f" In float by choice: {', '.join(found.float_layers)}." if found.float_layers else ""
    return (
        f"{found.sensitivity.output_db:.1f} dB at the output, over {found.samples} calibration samples; "
        f"ranges by {found.observer}.{left}"
    )
