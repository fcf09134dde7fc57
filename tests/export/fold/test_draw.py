"""The picture of a plan is well-formed, shows every layer, and stays small for large layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgefold.errors import OutputError
from edgefold.export.fold.draw import CENTRE, FULL, MIXED, SOME, draw, picture, rows_of
from edgefold.export.plan import FoldedLayer, FoldPlan, KernelMap


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

    texts = [element.text or "" for element in ElementTree.parse(out).iter("{http://www.w3.org/2000/svg}text")]
    assert {"stage.0", "stage.1"} <= set(texts)
    assert any("head <x>" in text and "aten.clamp" in text for text in texts)
    assert any("1 k before, 2 after" in text for text in texts)
    with pytest.raises(OutputError, match="exists"):
        draw(plan, out)


def test_a_large_layer_makes_a_small_picture() -> None:
    assert len(picture(FoldPlan((layer("big", hetconv(512, 8)),)))) < 120_000


def test_a_plan_without_folded_layers_is_drawn_too() -> None:
    assert ElementTree.fromstring(picture(FoldPlan(()))).tag.endswith("svg")
