"""The report as its reader sees it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgefold.export.plan import Totals
from edgefold.report.charts import WIDTH, accuracy_chart, undrawn
from edgefold.report.content import Failure, Shipment
from edgefold.report.page import render
from edgefold.report.table import duration, rows
from edgefold.results import Code


@pytest.fixture
def page_file(shipment: Shipment, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(shipment), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaints_or_requests(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.look(page_file.as_uri(), width=width, height=900, scheme=scheme)

    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.overflow_px == 0  # the page itself never scrolls sideways, only what is inside a box of its own
    brightness = sum(int(channel) for channel in re.findall(r"\d+", page.background)[:3]) / 3
    assert (brightness > 200) == (scheme == "light")
    assert len(page.screenshot) > 10_000


def test_the_browser_would_notice_what_the_report_must_not_do(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text('<img src="missing.png"><script>console.error("no")</script><div style="width: 2000px">wide</div>')
    page = browser.look(path.as_uri(), width=360, height=900, scheme="light")

    assert page.complaints
    assert any(url.endswith("missing.png") for url in page.requests)
    assert page.overflow_px > 0


def test_everything_is_in_the_page(shipment: Shipment) -> None:
    html = render(shipment)

    assert "6 of 6 artifacts pass all checks" in html
    for variant in shipment.variants:
        assert variant.name in html
    assert html.count('class="card') == 1 + len(shipment.fold.layers)  # the grid, and one a layer
    assert "aten.clamp is not affine" in html
    assert html.count("<svg") >= 2
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert len(html) < 200_000


def test_folding_is_shown_for_the_whole_network(shipment: Shipment) -> None:
    before, after = Totals(900, 40_000_000, 300_000, 1_200_000), Totals(30, 12_000_000, 90_000, 360_000)
    html = render(replace(shipment, fold=replace(shipment.fold, before=before, after=after)))

    for name, written, folded in (
        ("graph nodes", "900", "30"),
        ("FLOPs", "40 M", "12 M"),
        ("parameters", "300 k", "90 k"),
        ("bytes of weights in float32", "1.2 M", "360 k"),
    ):
        bars = html[html.index(f'<span class="what">{name}</span>') :]
        assert bars.index(f"<span>{written} as written</span>") < bars.index(f"<span>{folded} folded</span>") < 400


def test_a_failure_leads(shipment: Shipment) -> None:
    first = replace(
        shipment.variants[0],
        artifact=None,
        parity=None,
        accuracy=None,
        measurement=None,
        failure=Failure("emit", "UnsupportedError", "op 'x' has no form in onnx; replace it"),
    )
    html = render(replace(shipment, variants=(first, *shipment.variants[1:])))

    assert "5 of 6 artifacts pass all checks" in html
    assert html.index("has no form in onnx") < html.index("<table>")
    assert "FAILED" in html


def test_emulated_times_are_never_shown_as_latency(shipment: Shipment) -> None:
    variants = tuple(
        replace(v, measurement=replace(v.measurement, codes=(Code.EMULATED,)))
        for v in shipment.variants
        if v.measurement is not None
    )
    html = render(replace(shipment, variants=variants))

    assert '<td class="number">emulated</td>' in html
    for measured in (v.measurement for v in variants if v.measurement is not None):
        for shown in (measured.load_ns, measured.first_ns, measured.median_ns):
            assert shown is not None
            assert duration(shown) not in html
    assert "Latency of each artifact" not in html
    assert "Accuracy against median latency" not in html
    assert "Fastest" not in html


def test_a_long_tail_does_not_squeeze_the_picture(shipment: Shipment) -> None:
    first = shipment.variants[0]
    assert first.measurement is not None
    run = first.measurement.runs[0]
    slow = replace(run, samples_ns=(*run.samples_ns[:-8], *[50_000_000] * 8))
    changed = replace(first, measurement=replace(first.measurement, runs=(slow, *first.measurement.runs[1:])))
    shipment = replace(shipment, variants=(changed, *shipment.variants[1:]))

    total = sum(len(v.measurement.samples_ns) for v in shipment.variants if v.measurement is not None)
    assert undrawn(shipment) == (8, total)
    html = render(shipment)
    assert f"8 of {total} samples" in html
    chart = html[html.index("Latency of each artifact") :]
    assert "50.0 ms" not in chart[: chart.index("</svg>")]


@pytest.mark.parametrize("largest_us", [91, 229, 456, 4_560])
def test_labels_of_axes_end_within_the_picture(shipment: Shipment, largest_us: float) -> None:
    table = [replace(row, median_ns=1000 * largest_us) for row in rows(shipment)]
    found = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="middle"[^>]*>([^<]+)<', accuracy_chart(table))
    assert found
    for place, text in found:
        assert float(place) + 3.5 * len(text) <= WIDTH  # a character is at most 7 wide


def test_hostile_names_are_text(shipment: Shipment) -> None:
    html = render(replace(shipment, name="<script>alert(1)</script>", description='"><img src=x>'))

    assert "<script>" not in html
    assert "<img src=x>" not in html


def test_a_shipment_without_any_result_still_has_a_page(shipment: Shipment) -> None:
    empty = tuple(replace(v, lowering=None, parity=None, accuracy=None, measurement=None) for v in shipment.variants)
    html = render(replace(shipment, variants=empty, fold=replace(shipment.fold, layers=()), agreement=()))

    assert "6 of 6 artifacts" in html
    assert "<h2>Latency</h2>" not in html


def test_the_page_says_which_layer_int8_harms(shipment: Shipment) -> None:
    text = render(shipment)
    assert "What INT8 costs, and why" in text
    assert "--exclude stage0.9.a_block_with_a_long_name.conv1" in text
    assert text.count('class="alone') == 30
    assert text.count('class="alone worst"') == 3
    assert "INT8 does not pay, with 1.20 times the time of float" in text
    assert "costs, and why" not in render(replace(shipment, explanations=()))
