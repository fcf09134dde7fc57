"""A history as a picture: medians with their intervals over time, as a small SVG that stands alone.

Each series (artifact, device, runtime, threads) has a panel with a scale of its own: what does not compare is not joined by a
line. Times of an emulator and unstable medians are left out: they are no latency of any device, or would not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgefold.device_bench.store import HistoryEntry

WIDTH, HEIGHT, MARGIN = 720, 240, 48
BARS = "▁▂▃▄▅▆▇█"


def by_series(entries: Sequence[HistoryEntry]) -> list[list[HistoryEntry]]:
    """The entries whose medians are latencies, apart by series, in the order in which the series first appear."""
    found: dict[tuple[str, str, str, int], list[HistoryEntry]] = {}
    for entry in entries:
        if entry.is_latency:
            found.setdefault(entry.series, []).append(entry)
    return list(found.values())


def series_name(entry: HistoryEntry) -> str:
    """What the entries of a series have in common, in words."""
    artifact, device, runtime, threads = entry.series
    return f"{artifact} on {device}, {runtime}, {threads} thread{'s' if threads > 1 else ''}"


def sparkline(entries: Sequence[HistoryEntry]) -> str:
    """The medians of one series as one line of text; the highest is the slowest."""
    values = [entry.median_ns for entry in entries if entry.is_latency]
    if not values:
        return ""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 0] for value in values)


def trend_svg(entries: Sequence[HistoryEntry]) -> str:
    """The history, one panel a series; a ring marks an entry whose file is another one than before."""
    panels = by_series(entries)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * max(1, len(panels))}" role="img"',
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(_title(entries, panels))}</title>",
    ]
    for position, panel in enumerate(panels):
        parts += [f'<g transform="translate(0 {position * HEIGHT})">', *_panel(panel), "</g>"]
    if not panels:
        parts.append(f'<text x="{MARGIN}" y="{HEIGHT / 2}">{escape(_title(entries, panels))}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(entries: Sequence[HistoryEntry]) -> list[str]:
    """The elements of one series."""
    top = max(entry.high_ns for entry in entries) * 1.05
    step = (WIDTH - 2 * MARGIN) / max(1, len(entries) - 1)

    def x(position: int) -> float:
        return MARGIN + position * step

    def y(value: float) -> float:
        return HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)

    line = " ".join(f"{x(i):.1f},{y(entry.median_ns):.1f}" for i, entry in enumerate(entries))
    dates = HEIGHT - MARGIN + 18
    parts = [
        f'<text x="{MARGIN}" y="{MARGIN / 2}">{escape(series_name(entries[0]))}</text>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>',
        f'<text x="{MARGIN - 6}" y="{y(0):.1f}" text-anchor="end">0</text>',
        f'<text x="{MARGIN - 6}" y="{y(top) + 4:.1f}" text-anchor="end">{top / 1e6:.3g} ms</text>',
        f'<polyline points="{line}" fill="none" stroke="#2563eb"/>',
        f'<text x="{MARGIN}" y="{dates}">{escape(entries[0].date[:10])}</text>',
        f'<text x="{WIDTH - MARGIN}" y="{dates}" text-anchor="end">{escape(entries[-1].date[:10])}</text>',
    ]
    for i, entry in enumerate(entries):
        parts.append(f'<path d="M{x(i):.1f} {y(entry.low_ns):.1f}V{y(entry.high_ns):.1f}" stroke="#93c5fd" stroke-width="3"/>')
        ring = ' stroke="#dc2626" stroke-width="2"' if entry.changed else ""
        tip = f"{entry.date}: {entry.median_ns / 1e6:.4g} ms {' '.join(entry.codes)}"
        parts.append(f'<circle cx="{x(i):.1f}" cy="{y(entry.median_ns):.1f}" r="4" fill="#2563eb"{ring}>')
        parts.append(f"<title>{escape(tip)}</title></circle>")
    return parts


def _title(entries: Sequence[HistoryEntry], panels: Sequence[Sequence[HistoryEntry]]) -> str:
    drawn = sum(map(len, panels))
    hidden = f"; {len(entries) - drawn} are no latencies (emulated or unstable) and left out" if drawn < len(entries) else ""
    if not panels:
        return f"no latencies{hidden}" if entries else "no measurements"
    what = series_name(panels[0][0]) if len(panels) == 1 else f"{len(panels)} series"
    return f"{what}: median latency of {drawn} measurements{hidden}"
