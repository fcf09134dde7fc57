"""The picture of `block_study`: accuracy against multiply-adds and against INT8 latency in each runtime, with Pareto fronts.

A network is on the front where no other has at least its accuracy for less cost. Colour is the block; the whisker is the mean
over the seeds plus and minus one standard deviation; a number beside a point is its P or G.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from block_nets import family

from edgefold.artifact import Format
from edgefold.report.charts import RUNTIME_NAMES
from edgefold.report.svg import Scale, element, label, tooltip

WIDTH: Final = 1000.0
PANEL: Final = (500.0, 340.0)
PALETTE: Final = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac", "#eeca3b",
    "#1b9e77", "#333333", "#a6761d", "#7570b3", "#e7298a", "#66a61e",
)  # fmt: skip
STYLE: Final = """
svg{background:#fff;font:12px system-ui,sans-serif} text{fill:#333} .grid{stroke:#e3e3e3} .axis{fill:#666}
.front{fill:none;stroke:#888;stroke-dasharray:4 3} .whisker{stroke-opacity:.55;stroke-width:1.5} .title{font-weight:600}
@media (prefers-color-scheme:dark){svg{background:#14171a} text{fill:#ddd} .grid{stroke:#2c3136} .axis{fill:#999}}
"""

Row = dict[str, Any]
Value = Callable[[Row], float]


def costs(rows: Sequence[Row]) -> dict[str, tuple[str, Value]]:
    """Name -> (title, cost of a row) of each axis of costs that all rows have."""
    found: dict[str, tuple[str, Value]] = {"macs": ("multiply-adds, millions (fp32)", lambda row: row["macs"] / 1e6)}
    if all("latency" in row for row in rows):
        for form in Format:
            found[f"{form}-int8"] = (f"latency in {RUNTIME_NAMES[form]}, µs (INT8)", partial(_latency_us, f"{form}-int8"))
    return found


def _latency_us(key: str, row: Row) -> float:
    return float(row["latency"][key]["median_ns"]) / 1e3


def accuracy(row: Row, cost: str) -> dict[str, float]:
    """Mean and standard deviation of the accuracy that belongs to a cost."""
    figures: dict[str, float] = row["fp32_top1"] if cost == "macs" else row["int8_top1"][cost.removesuffix("-int8")]
    return figures


def front(rows: Sequence[Row], cost: str, value: Value) -> list[Row]:
    """The rows that no other beats, by rising cost."""
    best, kept = -math.inf, []
    for row in sorted(rows, key=lambda row: (value(row), -accuracy(row, cost)["mean"])):
        if accuracy(row, cost)["mean"] > best:
            best = accuracy(row, cost)["mean"]
            kept.append(row)
    return kept


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The names on the front of each axis."""
    return {cost: [row["name"] for row in front(rows, cost, value)] for cost, (_, value) in costs(rows).items()}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture as SVG."""
    families = list(dict.fromkeys(family(row["name"]) for row in rows))
    colours = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(families)}
    parts = [element("style", STYLE)]
    for place, (cost, (title, value)) in enumerate(costs(rows).items()):
        x, y = (place % 2) * PANEL[0], (place // 2) * PANEL[1]
        parts.append(element("g", _panel(rows, cost, title, value, colours), transform=f"translate({x:g} {y:g})"))
    height = PANEL[1] * math.ceil(len(costs(rows)) / 2)
    for place, (name, colour) in enumerate(colours.items()):
        x, y = 60 + (place % 5) * 180.0, height + 16 + (place // 5) * 20.0
        parts += [element("circle", cx=x, cy=y - 4, r=5, fill=colour), label(x + 10, y, name)]
    total = height + 28 + 20 * math.ceil(len(colours) / 5)
    content = "".join(parts)
    svg = element("svg", content, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH:g} {total:g}", role="img")
    path.write_text(svg + "\n", encoding="utf-8")


def _panel(rows: Sequence[Row], cost: str, title: str, value: Value, colours: dict[str, str]) -> str:
    tops = [accuracy(row, cost)["mean"] for row in rows]
    margin = max(0.002, (max(tops) - min(tops)) * 0.08)
    y = Scale(min(tops) - margin, max(tops) + margin, PANEL[1] - 52, 16)
    logarithmic = cost != "macs"  # locally connected layers take many times as long as the others
    along: Callable[[float], float] = math.log10 if logarithmic else float
    lowest, highest = min(map(value, rows)), max(map(value, rows))
    x = Scale(along(lowest * 0.9) if logarithmic else 0, along(highest * (1.4 if logarithmic else 1.08)), 58, PANEL[0] - 16)
    parts = [label((x.start + x.end) / 2, PANEL[1] - 14, title, class_="title", text_anchor="middle")]
    for tick in y.ticks(6):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(label(x.start - 6, y(tick) + 4, f"{100 * tick:.1f} %", class_="axis", text_anchor="end"))
    for tick in _decades(x) if logarithmic else x.ticks(6):
        parts.append(element("line", x1=x(along(tick)), x2=x(along(tick)), y1=y.start, y2=y.end, class_="grid"))
        parts.append(label(x(along(tick)), y.start + 16, f"{tick:g}", class_="axis", text_anchor="middle"))
    line = " ".join(f"{x(along(value(row))):.1f},{y(accuracy(row, cost)['mean']):.1f}" for row in front(rows, cost, value))
    parts.append(element("polyline", points=line, class_="front"))
    parts += [_point(row, x(along(value(row))), y, accuracy(row, cost), colours) for row in rows]
    return "".join(parts)


def _decades(x: Scale) -> list[float]:
    """The ticks 1, 2, 5, 10 … of an axis of logarithms."""
    found = (digit * 10.0**power for power in range(math.floor(x.low), math.ceil(x.high)) for digit in (1, 2, 5))
    return [tick for tick in found if x.low <= math.log10(tick) <= x.high]


def _point(row: Row, x: float, y: Scale, top: dict[str, float], colours: dict[str, str]) -> str:
    colour = colours[family(row["name"])]
    number = row["name"].partition("+")[2] or row["name"].partition(":")[2]
    parts = [element("circle", cx=x, cy=y(top["mean"]), r=5, fill=colour)]
    if top["stdev"]:
        low, high = y(top["mean"] - top["stdev"]), y(top["mean"] + top["stdev"])
        parts.append(element("line", x1=x, x2=x, y1=low, y2=high, stroke=colour, class_="whisker"))
    if number:
        parts.append(label(x + 7, y(top["mean"]) + 4, number))
    return element("g", "".join(parts) + tooltip(f"{row['name']}: {100 * top['mean']:.2f} %"))
