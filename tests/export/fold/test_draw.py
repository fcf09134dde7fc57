"""The picture of a plan is well-formed, shows every layer, and stays small for large layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgefold.errors import OutputError
from edgefold.export.fold.draw import CENTRE, FULL, MIXED, SOME, draw, picture, rows_of
from edgefold.export.plan import FoldedLayer, FoldPlan, KernelMap, Totals

SVG = "{http://www.w3.org/2000/svg}"


def hetconv(channels: int, parts: int) -> KernelMap:
    """The map of HetConv with as many outputs as inputs."""
    groups = tuple((tuple(range(r, channels, parts)), tuple(range(r, channels, parts))) for r in range(parts))
    full = channels * channels // parts
    return KernelMap(channels, channels, (3, 3), full, channels * channels - full, 0, groups)


def layer(name: str, kernel_map: KernelMap) -> FoldedLayer:
    """A folded layer with a map."""
    return FoldedLayer(name, "Loop", True, "", "8->8 k3x3", kernel_map, 500, 9000, 4000, 80_000, 40_000, 1e-7)


def test_cells_are_where_the_groups_are() -> None:
    rows = rows_of(hetconv(8, 4), ordered=False)
    assert [[(cell == FULL) for cell in row] for row in rows] == [[(m - n) % 4 == 0 for m in range(8)] for n in range(8)]
    assert {cell for row in rows for cell in row} == {FULL, CENTRE}


def test_ordering_by_groups_makes_blocks() -> None:
    rows = rows_of(hetconv(8, 4), ordered=True)
    assert [[(cell == FULL) for cell in row] for row in rows] == [[m // 2 == n // 2 for m in range(8)] for n in range(8)]


def test_gaps_and_mixtures_are_not_drawn_as_something_else() -> None:
    rows = rows_of(replace(hetconv(8, 4), full=15, centre=30, zero=19), ordered=False)
    assert {cell for row in rows for cell in row} == {SOME, MIXED}


def test_channels_outside_of_all_groups_come_last() -> None:
    found = KernelMap(3, 3, (3, 3), 1, 0, 8, (((2,), (1,)),))
    assert rows_of(found, ordered=True)[0][0] == FULL


def test_every_layer_is_in_the_picture(tmp_path: Path) -> None:
    stays = FoldedLayer("head <x>", "Clamped", False, "applies aten.clamp, which is not affine")
    plan = FoldPlan((layer("stage.0", hetconv(8, 4)), layer("stage.1", hetconv(8, 1)), stays))
    out = tmp_path / "plan.svg"

    draw(plan, out)

    texts = [element.text or "" for element in ElementTree.parse(out).iter(f"{SVG}text")]
    assert {"stage.0", "stage.1"} <= set(texts)
    assert any("head <x>" in text and "aten.clamp" in text for text in texts)
    assert {"1 k as written", "2 folded"} <= set(texts)  # nodes
    with pytest.raises(OutputError, match="exists"):
        draw(plan, out)


def strip(svg: str, kind: str) -> list[float]:
    """The widths of the segments of one kind, those of the legend left out."""
    found = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("class") == kind]
    return [float(one.get("width", "")) for one in found if one.get("height") == "16"]


def test_the_strips_are_those_of_the_whole_network() -> None:
    """As wide as the network's totals, with what no layer of the plan has at the end."""
    stays = FoldedLayer(
        "head", "Linear", False, "", ops_before=1, parameters_before=1000, parameters=1000, macs_before=8000, macs=8000
    )
    before, after = Totals(520, 200_000, 12_000, 48_000), Totals(21, 120_000, 7_000, 28_000)
    plan = FoldPlan((layer("stage.0", hetconv(8, 4)), stays), before, after)
    svg = picture(plan)
    texts = {element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    written, folded = {"520 as written", "200 k as written", "48 kB as written"}, {"21 folded", "120 k folded", "28 kB folded"}
    assert written | folded <= texts
    nodes, flops, weights = strip(svg, "before")
    assert (nodes, flops, weights) == pytest.approx((600 * 500 / 520, 600 * 160 / 200, 600 * 9000 / 12_000), abs=1)
    nodes, flops, weights = strip(svg, "after")
    assert (nodes, flops, weights) == pytest.approx((600 * 1 / 520, 600 * 80 / 200, 600 * 4000 / 12_000), abs=1)
    assert strip(svg, "other") == pytest.approx(
        [600 * share for share in (19 / 520, 19 / 520, 24 / 200, 24 / 200, 1 / 6, 1 / 6)], abs=1
    )


def test_the_second_map_stands_beside_the_first() -> None:
    narrow = KernelMap(8, 64, (3, 3), 128, 384, 0, tuple(((r, r + 4), tuple(range(r, 64, 4))) for r in range(4)))
    root = ElementTree.fromstring(picture(FoldPlan((layer("narrow", narrow),))))
    first, second = (one for one in root.iter(f"{SVG}rect") if one.get("class") == "frame" and one.get("width") != "12")
    gap = float(second.get("x", "")) - float(first.get("x", "")) - float(first.get("width", ""))
    assert 8 <= gap <= 24


def test_a_large_layer_makes_a_small_picture() -> None:
    assert len(picture(FoldPlan((layer("big", hetconv(512, 8)),)))) < 120_000


def test_a_plan_without_folded_layers_is_drawn_too() -> None:
    assert ElementTree.fromstring(picture(FoldPlan(()))).tag.endswith("svg")
