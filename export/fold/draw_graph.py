"""The whole network before and after in three pairs of strips: its nodes, its FLOPs and its bytes, layer by layer.

A strip has one segment a layer, in execution order, and one for all that fold did not look at; both strips of a pair have one
scale. Where segments are too thin to be told from each other they run into one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from edgefold.export.plan import FoldedLayer, FoldPlan, Totals

BEFORE, AFTER, STAYS, OTHER = "before", "after", "stays", "other"
HEIGHT: Final = 16  # of a strip
_PITCH: Final = 56  # from one pair to the next
_LABEL, _STRIP = 150, 600
_GAP: Final = 0.6  # between segments that are wide enough for one
_THIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Measure:
    """What a pair of strips shows, of a layer and of a network."""

    name: str
    unit: str
    layer_before: Callable[[FoldedLayer], int]
    layer_after: Callable[[FoldedLayer], int]
    whole: Callable[[Totals], int]


MEASURES: Final = (
    Measure("nodes", "", lambda one: one.ops_before, lambda one: 1 if one.folded else one.ops_before, lambda net: net.nodes),
    Measure("FLOPs", "", lambda one: 2 * one.macs_before, lambda one: 2 * one.macs, lambda net: net.flops),
    Measure(
        name="weights in float32",
        unit="B",
        layer_before=lambda one: 4 * one.parameters_before,
        layer_after=lambda one: 4 * one.parameters,
        whole=lambda net: net.weight_bytes,
    ),
)


def strips(plan: FoldPlan, left: int, top: int) -> tuple[list[str], int]:
    """The strips as SVG, and where they end; plans without totals are those of their layers."""
    body = []
    for measure in MEASURES:
        sides = []
        for values, totals in ((measure.layer_before, plan.before), (measure.layer_after, plan.after)):
            counts = [values(layer) for layer in plan.layers]
            whole = sum(counts) if totals is None else measure.whole(totals)
            sides.append((counts, whole))
        scale = _STRIP / max(1, *(max(whole, sum(counts)) for counts, whole in sides))
        body.append(text(left, top + HEIGHT + 5, measure.name, "name"))
        for row, (done, (counts, whole)) in enumerate(zip((BEFORE, AFTER), sides, strict=True)):
            y = top + row * (HEIGHT + 3)
            body += _strip(plan.layers, counts, whole, done, scale, left + _LABEL, y, measure)
            shown = f"{amount(whole, measure.unit)} {'as written' if done == BEFORE else 'folded'}"
            body.append(text(left + _LABEL + _STRIP + 16, y + 12, shown, "dim" if done == BEFORE else ""))
        top += _PITCH
    return body, top


def _strip(
    layers: Sequence[FoldedLayer],
    counts: Sequence[int],
    whole: int,
    done: str,
    scale: float,
    left: int,
    top: int,
    measure: Measure,
) -> list[str]:
    found, x = [], float(left)
    named = [(done if layer.folded else STAYS, layer.name) for layer in layers]
    rest = max(0, whole - sum(counts))
    for (kind, name), count in zip([*named, (OTHER, "all other ops")], [*counts, rest], strict=True):
        width = count * scale
        if width > 0:
            gap = _GAP if width > _THIN else 0.0
            said = f"<title>{escape(f'{name}: {amount(count, measure.unit)}')}</title>"
            found.append(f'<rect class="{kind}" x="{x:.2f}" y="{top}" width="{width - gap:.2f}" height="{HEIGHT}">{said}</rect>')
        x += width
    return found


def legend(entries: Sequence[tuple[str, str]], left: int, top: int) -> str:
    """Colours with what they stand for, in a row; a class of "frame" is an empty box."""
    parts = []
    for kind, what in entries:
        parts.append(f'<rect class="{kind}" x="{left}" y="{top}" width="12" height="12"/>{text(left + 18, top + 10, what)}')
        left += 40 + 7 * len(what)
    return "".join(parts)


def text(left: int, base: int, content: str, kind: str = "") -> str:
    """A line of text."""
    style = f" class={quoteattr(kind)}" if kind else ""
    return f'<text x="{left}" y="{base}"{style}>{escape(content)}</text>'


def amount(value: int, unit: str = "") -> str:
    """A count in three digits with its unit: 812, 832 B, 12.3 k, 4.56 MB."""
    for prefix, factor in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if value / factor < 999.5 or prefix == "G":
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    raise AssertionError("the last prefix takes any value")
