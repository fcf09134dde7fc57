"""A history as a picture: medians with their intervals over time, as a small SVG that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgefold.device_bench.store import HistoryEntry

WIDTH, HEIGHT, MARGIN = 720, 240, 48
BARS = "▁▂▃▄▅▆▇█"


def sparkline(entries: Sequence[HistoryEntry]) -> str:
    """The medians as one line of text; the highest is the slowest."""
    values = [entry.median_ns for entry in entries]
    if not values:
        return ""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 0] for value in values)


def trend_svg(entries: Sequence[HistoryEntry]) -> str:
    """The history of one artifact on one device; a ring marks an entry whose file is another one than before."""
    top = max((entry.high_ns for entry in entries), default=1.0) * 1.05
    step = (WIDTH - 2 * MARGIN) / max(1, len(entries) - 1)

    def x(position: int) -> float:
        return MARGIN + position * step

    def y(value: float) -> float:
        return HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(_title(entries))}</title>",
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>',
        f'<text x="{MARGIN - 6}" y="{y(0):.1f}" text-anchor="end">0</text>',
        f'<text x="{MARGIN - 6}" y="{y(top) + 4:.1f}" text-anchor="end">{top / 1e6:.3g} ms</text>',
    ]
    if entries:
        line = " ".join(f"{x(i):.1f},{y(entry.median_ns):.1f}" for i, entry in enumerate(entries))
        parts.append(f'<polyline points="{line}" fill="none" stroke="#2563eb"/>')
        parts.append(f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 18}">{escape(entries[0].date[:10])}</text>')
        last = f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 18}" text-anchor="end">{escape(entries[-1].date[:10])}</text>'
        parts.append(last)
    for i, entry in enumerate(entries):
        parts.append(f'<path d="M{x(i):.1f} {y(entry.low_ns):.1f}V{y(entry.high_ns):.1f}" stroke="#93c5fd" stroke-width="3"/>')
        ring = ' stroke="#dc2626" stroke-width="2"' if entry.changed else ""
        tip = f"{entry.date}: {entry.median_ns / 1e6:.4g} ms, {entry.runtime} {' '.join(entry.codes)}"
        parts.append(f'<circle cx="{x(i):.1f}" cy="{y(entry.median_ns):.1f}" r="4" fill="#2563eb"{ring}>')
        parts.append(f"<title>{escape(tip)}</title></circle>")
    return "\n".join([*parts, "</svg>", ""])


def _title(entries: Sequence[HistoryEntry]) -> str:
    if not entries:
        return "no measurements"
    return f"{entries[-1].artifact} on {entries[-1].device}: median latency of {len(entries)} measurements"
