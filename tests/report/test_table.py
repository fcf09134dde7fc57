"""The table, the verdict and the small pictures behind the report."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import pytest

from edgefold.export.plan import KernelMap
from edgefold.report.charts import accuracy_chart, histogram, latency_chart
from edgefold.report.content import Failure, Shipment, Variant
from edgefold.report.kernel_map import CENTRE, FULL, MIXED, PALETTE, PARTLY, ZERO, kernel_grid, png
from edgefold.report.svg import Scale, element
from edgefold.report.table import HEADERS, cells, duration, markdown, rows, size, slug
from edgefold.report.verdict import verdict
from edgefold.results import Code


def test_speedup_is_over_fp32_in_the_same_runtime(shipment: Shipment) -> None:
    table = {row.name: row for row in rows(shipment)}
    medians = {v.name: v.measurement.median_ns for v in shipment.variants if v.measurement is not None}

    assert table["tflite-int8"].speedup == medians["tflite-fp32"] / medians["tflite-int8"]
    assert table["onnx-fp32"].speedup == 1.0


def _with(shipment: Shipment, name: str, **changes: Any) -> Shipment:
    def change(variant: Variant) -> Variant:
        assert variant.measurement is not None
        return replace(variant, measurement=replace(variant.measurement, **changes)) if variant.name == name else variant

    return replace(shipment, variants=tuple(change(variant) for variant in shipment.variants))


@pytest.mark.parametrize(
    "changes", [{"threads": 4}, {"runtime": "other 2.0"}, {"codes": (Code.EMULATED,)}, {"codes": (Code.UNSTABLE,)}]
)
def test_no_speedup_between_what_cannot_be_compared(shipment: Shipment, changes: dict[str, Any]) -> None:
    table = {row.name: row for row in rows(_with(shipment, "onnx-int8", **changes))}

    assert table["onnx-int8"].speedup is None
    assert table["tflite-int8"].speedup is not None


def test_an_unstable_figure_says_so(shipment: Shipment) -> None:
    changed = _with(shipment, "onnx-int8", codes=(Code.UNSTABLE,))
    row = next(row for row in rows(changed) if row.name == "onnx-int8")

    assert row.interval_ns is not None
    low, high = map(duration, row.interval_ns)
    assert cells(row)[HEADERS.index("median [95 %]")] == f"unstable [{low}, {high}]"
    assert not any("onnx-int8" in text for text in verdict(changed).findings if text.startswith("Fastest"))
    assert "onnx-int8" not in accuracy_chart(rows(changed))
    assert latency_chart(changed).count('class="median"') == len(changed.variants) - 1


@pytest.mark.parametrize("code", [Code.EMULATED, Code.UNSTABLE])
def test_no_speedup_over_a_median_that_is_no_latency(shipment: Shipment, code: Code) -> None:
    changed = _with(shipment, "onnx-fp32", codes=(code,))
    table = {row.name: row for row in rows(changed)}

    assert table["onnx-int8"].speedup is None
    assert table["onnx-fp32"].speedup is None
    assert table["tflite-int8"].speedup is not None
    assert not any("onnx" in text for text in verdict(changed).findings if text.startswith("Slower"))


def test_problems_are_named(shipment: Shipment) -> None:
    first, second, third, *rest = shipment.variants
    assert second.parity is not None
    assert third.accuracy is not None
    broken = replace(
        shipment,
        variants=(
            replace(first, failure=Failure("bench", "DeviceError", "the device went away; plug it in")),
            replace(second, parity=replace(second.parity, passed=False)),
            replace(third, accuracy=replace(third.accuracy, value=0.8, passed=False)),
            *rest,
        ),
    )
    found = verdict(broken)

    assert not found.passed
    assert found.headline.startswith("3 of 6")
    assert found.problems == (
        f"{first.name}: bench: the device went away; plug it in",
        f"{second.name}: parity: 41.5 dB, 1 LSB, expected SQNR >= 30 dB",
        f"{third.name}: accuracy: 80.0 % against 92.5 % in torch, expected within 0.5 points of fp32",
    )
    assert any("12.50 points below" in text for text in found.findings)


def test_markdown_has_one_line_a_variant(shipment: Shipment) -> None:
    lines = markdown(rows(shipment)).splitlines()

    assert len(lines) == 2 + len(shipment.variants)
    assert all(line.count("|") == len(HEADERS) + 1 for line in lines)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1, "1.00 ns"),
        (999.4, "999 ns"),
        (999.6, "1.00 µs"),
        (412_345, "412 µs"),
        (1_250_000, "1.25 ms"),
        (12_340_000, "12.3 ms"),
        (2.1e9, "2.10 s"),
    ],
)
def test_durations_keep_three_digits(ns: float, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (812_345, "812 kB"), (3_400_000, "3.4 MB"), (5_210_000_000, "5.21 GB")],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("name", "safe"), [("timm:mobilenetv3", "timm-mobilenetv3"), ("../x/y.py:make", "x-y.py-make"), ("::", "model")]
)
def test_slug(name: str, safe: str) -> None:
    assert slug(name) == safe


def test_kernel_map_of_a_hetconv() -> None:
    # P = 2: kernel (n, m) is whole iff m = n (mod 2).
    groups = (((0, 2), (0, 2)), ((1, 3), (1,)))
    grid = kernel_grid(KernelMap(3, 4, (3, 3), full=6, centre=6, zero=0, groups=groups))

    assert [list(row) for row in grid] == [[FULL, CENTRE] * 2, [CENTRE, FULL] * 2, [FULL, CENTRE] * 2]


@pytest.mark.parametrize(
    ("full", "centre", "zero", "inside", "outside"), [(3, 0, 5, PARTLY, ZERO), (4, 2, 2, FULL, MIXED), (4, 4, 0, FULL, CENTRE)]
)
def test_kernel_map_shows_only_what_the_plan_knows(full: int, centre: int, zero: int, inside: int, outside: int) -> None:
    grid = kernel_grid(KernelMap(2, 4, (3, 3), full, centre, zero, groups=(((0, 1), (0, 1)),)))

    assert [list(row) for row in grid] == [[inside, inside, outside, outside]] * 2


def test_png_decodes_to_the_palette() -> None:
    import io

    from PIL import Image

    grid = [bytearray([FULL, ZERO, CENTRE]), bytearray([MIXED, PARTLY, FULL])]
    with Image.open(io.BytesIO(png(grid))) as image:
        decoded = image.convert("RGBA")

    assert decoded.size == (3, 2)
    assert [decoded.getpixel((x, y)) for y in range(2) for x in range(3)] == [PALETTE[value] for row in grid for value in row]


def test_png_chunks_carry_their_checksums() -> None:
    data = png([bytearray([FULL])])
    length = struct.unpack(">I", data[8:12])[0]
    assert struct.unpack(">I", data[16 + length : 20 + length])[0] == zlib.crc32(data[12 : 16 + length])


def test_histogram_counts_what_is_inside() -> None:
    assert histogram([0, 1, 4, 5, 9, 10, -1], 0, 10, bins=2) == [3, 2]


def test_scale_has_round_ticks_inside() -> None:
    scale = Scale(0.0, 960_000.0, 100.0, 600.0)

    assert scale.ticks(5) == [0.0, 200_000.0, 400_000.0, 600_000.0, 800_000.0]
    assert scale(480_000.0) == 350.0
    assert Scale(3.0, 3.0, 0.0, 10.0)(3.0) == 5.0
    assert Scale(3.0, 3.0, 0.0, 10.0).ticks() == [3.0]


def test_elements_are_escaped() -> None:
    assert element("a", class_='x"y', text_anchor="end") == '<a class="x&quot;y" text-anchor="end"/>'
