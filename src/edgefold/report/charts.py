"""The pictures of the measurements: how latencies are spread, and accuracy against latency."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgefold.artifact import Format, Precision
from edgefold.report.content import Shipment
from edgefold.report.svg import Scale, element, label, picture, tooltip
from edgefold.report.table import Row, duration, latency, percent
from edgefold.results import NO_LATENCY, Code, Measurement

WIDTH = 640.0
_RIGHT = WIDTH - 24  # where axes end: half of a label stands beyond its tick
_LEFT = 128.0
_BINS = 80
RUNTIME_NAMES = {Format.ONNX: "ONNX Runtime", Format.TFLITE: "LiteRT", Format.EXECUTORCH: "ExecuTorch"}


def latency_chart(shipment: Shipment) -> str:
    """One row a variant: the spread of its samples, the median (unless it is unstable) and its 95 % interval. Emulated times are
    no latencies."""
    measured = _timed(shipment)
    if not measured:
        return ""
    row, top = 44.0, 8.0
    longest = max(_drawn_ns(m) for *_, m in measured)
    x = Scale(0.0, longest * 1.02, _LEFT, _RIGHT)
    bottom = top + row * len(measured)
    parts = [_x_axis(x, bottom)]
    parts += [_spread(name, form, m, x, top + row * i, row) for i, (name, form, m) in enumerate(measured)]
    return picture(WIDTH, bottom + 36, "".join(parts), "Latency of each artifact")


def undrawn(shipment: Shipment) -> tuple[int, int]:
    """How many samples lie to the right of the picture, and how many there are."""
    measured = [measurement for *_, measurement in _timed(shipment)]
    if not measured:
        return 0, 0
    end = max(_drawn_ns(m) for m in measured) * 1.02
    samples = [sample for m in measured for sample in m.samples_ns]
    return sum(sample >= end for sample in samples), len(samples)


def accuracy_chart(table: Sequence[Row]) -> str:
    """Accuracy against median latency: up and to the left is better. Colour is the runtime, shape the precision."""
    timed = [row for row in table if row.median_ns is not None and not NO_LATENCY & set(row.codes)]
    points = [row for row in timed if row.accuracy is not None]
    if not points:
        return ""
    height, top, bottom, left = 300.0, 14.0, 250.0, 64.0
    accuracies = [row.accuracy for row in points if row.accuracy is not None]
    references = [row.accuracy_reference for row in points if row.accuracy_reference is not None]
    low, high = min(accuracies + references), max(accuracies + references)
    # At least one point of accuracy is shown: a thousandth must not look like a cliff.
    margin = max(0.005, (high - low) * 0.25)
    y = Scale(low - margin, min(high + margin, 1.0), bottom, top)
    x = Scale(0.0, max(row.median_ns or 0.0 for row in points) * 1.1, left, _RIGHT)
    parts = [_x_axis(x, bottom, y_top=top), label(x.end, bottom + 34, "median latency", class_="axis", text_anchor="end")]
    for tick in y.ticks(4):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(label(x.start - 6, y(tick) + 4, percent(tick), class_="axis", text_anchor="end"))
    if references:
        at = y(references[0])
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="reference"))
        parts.append(label(x.start + 6, at - 5, "float network in torch", class_="axis"))
    parts += [_point(row, x(row.median_ns or 0.0), y(row.accuracy or 0.0)) for row in points]
    return picture(WIDTH, height, "".join(parts), "Accuracy against median latency")


def legend(table: Sequence[Row]) -> str:
    """Which colour is which runtime, and which shape which precision, as HTML."""
    formats = dict.fromkeys(row.format for row in table)
    items = [f'<span><i class="swatch {form.value}"></i>{RUNTIME_NAMES[form]}</span>' for form in formats]
    shapes = "".join(
        f'<span><svg class="mark" viewBox="0 0 12 12">{_mark(precision, 6, 6, 4.5, "plain")}</svg>{precision}</span>'
        for precision in dict.fromkeys(row.precision for row in table)
    )
    return f'<p class="legend">{"".join(items)}{shapes}</p>'


def histogram(samples: Sequence[int], low: float, high: float, bins: int = _BINS) -> list[int]:
    """Counts of the samples in equal bins over [low, high); what lies outside is not counted."""
    counts = [0] * bins
    width = (high - low) / bins
    for sample in samples:
        index = math.floor((sample - low) / width)
        if 0 <= index < bins:
            counts[index] += 1
    return counts


def _spread(name: str, form: Format, measured: Measurement, x: Scale, top: float, height: float) -> str:
    base, crest = top + height - 8, height - 14
    counts = histogram(measured.samples_ns, x.low, x.high, bins=4 * _BINS)
    tallest = max(counts) or 1
    step = (x.end - x.start) / len(counts)
    path = f"M{x.start:.1f} {base:.1f}"
    for i, count in enumerate(counts):
        if count or (i and counts[i - 1]) or (i + 1 < len(counts) and counts[i + 1]):
            y = base - crest * count / tallest
            path += f"L{x.start + step * i:.1f} {base:.1f}V{y:.1f}h{step:.2f}V{base:.1f}"
    low, high = measured.interval_ns
    stable = not NO_LATENCY & set(measured.codes)
    text = f"{latency(measured.median_ns, measured.interval_ns, measured.codes)}, {len(measured.samples_ns)} samples"
    parts = [
        label(_LEFT - 10, base - crest / 2 + 4, name, class_="name", text_anchor="end"),
        element("line", x1=x.start, x2=x.end, y1=base, y2=base, class_="grid"),
        element("path", d=path + "Z", class_=f"area {form.value}"),
        element("rect", x=x(low), width=max(x(high) - x(low), 1.5), y=top + 2, height=base - top - 2, class_="interval"),
        element("line", x1=x(measured.median_ns), x2=x(measured.median_ns), y1=top + 2, y2=base, class_="median")
        if stable
        else "",
        tooltip(f"{name}: {text}"),
    ]
    return element("g", "".join(parts))


def _point(row: Row, x: float, y: float) -> str:
    text = f"{row.name}: {percent(row.accuracy or 0.0)}, {duration(row.median_ns or 0.0)}"
    return element("g", _mark(row.precision, x, y, 7, row.format.value) + tooltip(text))


def _mark(precision: Precision, x: float, y: float, r: float, colour: str) -> str:
    """fp32 is a circle, INT8 a square, all else a diamond."""
    if precision == Precision.FP32:
        return element("circle", cx=x, cy=y, r=r, class_=f"point {colour}")
    if precision == Precision.INT8:
        return element("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_=f"point {colour}")
    points = f"{x:.1f},{y - r:.1f} {x + r:.1f},{y:.1f} {x:.1f},{y + r:.1f} {x - r:.1f},{y:.1f}"
    return element("polygon", points=points, class_=f"point {colour}")


def _x_axis(x: Scale, y: float, *, y_top: float = 0.0) -> str:
    parts = [element("line", x1=x.start, x2=x.end, y1=y, y2=y, class_="axisline")]
    for tick in x.ticks(6):
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=y_top, y2=y, class_="grid"))
        parts.append(label(x(tick), y + 16, "0" if tick == 0 else duration(tick), class_="axis", text_anchor="middle"))
    return "".join(parts)


def _timed(shipment: Shipment) -> list[tuple[str, Format, Measurement]]:
    """What was measured on a real device: name, format, measurement."""
    return [
        (variant.name, variant.format, variant.measurement)
        for variant in shipment.variants
        if variant.measurement is not None and Code.EMULATED not in variant.measurement.codes
    ]


def _drawn_ns(measured: Measurement) -> float:
    """How far the picture must reach for a measurement: to its 99th percentile, but a long tail must not squeeze all else."""
    ordered = sorted(measured.samples_ns)
    return min(ordered[math.ceil(0.99 * len(ordered)) - 1], 2.5 * measured.median_ns)
