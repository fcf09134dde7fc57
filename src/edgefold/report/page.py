"""The report: one HTML page that needs no network, no script and no second file."""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.report.charts import accuracy_chart, latency_chart, legend, undrawn
from edgefold.report.content import Shipment
from edgefold.report.explained import explained_schemes
from edgefold.report.plan_pictures import choice_summary, choices, closing_text, layer_cards, totals
from edgefold.report.table import HEADERS, cells, duration, known, percent, rows, same_top1, size
from edgefold.report.verdict import verdict
from edgefold.results import Code, Measurement


@dataclass(frozen=True, slots=True)
class _Conditions:
    """Under which conditions one artifact was measured, as text."""

    name: str
    runtime: str
    threads: str
    processes: str
    first: str
    memory: str
    noise: str
    codes: str


def render(shipment: Shipment) -> str:
    """The report of a shipment as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("edgefold.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    table = rows(shipment)
    names, chosen = choices(shipment)
    measured = [(variant.name, variant.measurement) for variant in shipment.variants if variant.measurement is not None]
    plans = [(variant.name, variant.lowering) for variant in shipment.variants if variant.lowering is not None]
    return environment.get_template("page.html.j2").render(
        shipment=shipment,
        verdict=verdict(shipment),
        headers=HEADERS,
        table=[(row, cells(row)) for row in table],
        # Charts are markup that svg.py has escaped.
        latency=Markup(latency_chart(shipment)),
        undrawn=undrawn(shipment),
        accuracy=Markup(accuracy_chart(table)),
        legend=Markup(legend(table)),
        totals=totals(shipment.fold),
        cards=layer_cards(shipment.fold),
        choice_names=names,
        choice_rows=chosen,
        choice_summaries=[
            (name, choice_summary(plan.layers), plan.gathers, plan.device, closing_text(plan)) for name, plan in plans
        ],
        explained=explained_schemes(shipment.explanations),
        conditions=[_conditions(name, measurement) for name, measurement in measured],
        device=measured[0][1].device if measured else None,
        size=size,
        percent=percent,
        same_top1=same_top1,
    )


def _conditions(name: str, measured: Measurement) -> _Conditions:
    return _Conditions(
        name=name,
        runtime=measured.runtime,
        threads=str(measured.threads),
        processes=f"{len(measured.runs)} × {len(measured.samples_ns) // max(1, len(measured.runs))} samples",
        first=known(None if Code.EMULATED in measured.codes else measured.first_ns, duration),
        memory=known(measured.peak_rss_bytes, size),
        noise=f"{measured.noise * 100:.1f} %",
        codes=", ".join(measured.codes),
    )
