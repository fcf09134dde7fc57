"""A plan as one SVG: the network before and after, and the kernel map of each folded layer, as written and ordered by groups.

A map has one cell for each kernel (n, m), output channels down and input channels across. Rows that are equal are drawn once and
used again, which keeps the map of 512 x 512 kernels small: HetConv with part P has P different rows.

The plan counts the kernels of a kind; inside a group whose kernels are not all full, and where centre taps and zeros are
mixed, the cells are drawn in a paler colour.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from edgefold.artifact import atomic_path
from edgefold.export.fold.draw_graph import AFTER, BEFORE, OTHER, STAYS, amount, legend, strips, text
from edgefold.export.plan import FoldedLayer, FoldPlan, KernelMap

FULL, SOME, CENTRE, MIXED, ZERO = "full", "some", "centre", "mixed", "zero"
Row = tuple[str, ...]  # the kind of each cell

_STYLE = """
text{font:12px system-ui,sans-serif;fill:#1c2430}.title{font-size:20px;font-weight:600}.name{font-weight:600}
.dim{fill:#5d6b7e;font-size:11px}.full{fill:#2f6fed}.some{fill:#97b7f6}.centre{fill:#b9c1cd}.mixed{fill:#dde1e7}
.paper{fill:#fff}.frame{fill:none;stroke:#c9d0da}.card{fill:#f7f8fa;stroke:#e3e7ed}
.before{fill:#8da2c0}.after{fill:#2f6fed}.stays{fill:#d3b98c}.other{fill:#e3e7ed}
"""
_WIDTH, _MARGIN, _GAP, _COLUMNS = 1080, 32, 16, 3
_CARD = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) // _COLUMNS
_MAP, _CARD_HEIGHT, _LINE = 136, 260, 20


def draw(plan: FoldPlan, out: Path, *, force: bool = False) -> None:
    """Writes the picture of a plan.

    Raises:
        OutputError: ``out`` exists and ``force`` is not set, or cannot be written.
    """
    with atomic_path(out, force=force) as path:
        path.write_text(picture(plan), encoding="utf-8")


def picture(plan: FoldPlan) -> str:
    """The SVG of a plan."""
    folded = [layer for layer in plan.layers if layer.folded]
    kept = [layer for layer in plan.layers if not layer.folded]
    body, top = _head(plan, folded, kept)
    for index, layer in enumerate(folded):
        left = _MARGIN + index % _COLUMNS * (_CARD + _GAP)
        body.append(_card(layer, index, left, top + index // _COLUMNS * (_CARD_HEIGHT + _GAP)))
    top += -(-len(folded) // _COLUMNS) * (_CARD_HEIGHT + _GAP)
    if kept:
        body.append(text(_MARGIN, top + 16, f"Stay as they are: {len(kept)}", "name"))
        top += 16
        for layer in kept:
            top += _LINE
            body.append(text(_MARGIN, top, _shortened(f"{layer.name} ({layer.kind}): {layer.reason}", 170), "dim"))
    height = top + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="What fold did to each layer"><style>{_STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(body)}</svg>\n'
    )


def rows_of(kernel_map: KernelMap, *, ordered: bool) -> list[Row]:
    """The cells of a map, row by row; ``ordered`` puts the channels of a group side by side."""
    grouped = sum(len(reads) * len(writes) for reads, writes in kernel_map.groups)
    inside = FULL if grouped == kernel_map.full else SOME
    outside = ZERO if kernel_map.centre == 0 else CENTRE if kernel_map.zero == 0 else MIXED
    reads_of = {n: frozenset(reads) for reads, writes in kernel_map.groups for n in writes}
    columns, lines = range(kernel_map.in_channels), range(kernel_map.out_channels)
    order = [_order(side, kernel_map) for side in (0, 1)] if ordered else [list(columns), list(lines)]
    made: dict[frozenset[int], Row] = {}
    rows = []
    for n in order[1]:
        reads = reads_of.get(n, frozenset())
        if reads not in made:
            made[reads] = tuple(inside if m in reads else outside for m in order[0])
        rows.append(made[reads])
    return rows


def _order(side: int, kernel_map: KernelMap) -> list[int]:
    """The channels by groups, and those without a group at the end."""
    first = [channel for group in kernel_map.groups for channel in group[side]]
    count = (kernel_map.in_channels, kernel_map.out_channels)[side]
    return first + sorted(set(range(count)) - set(first))


def _head(plan: FoldPlan, folded: list[FoldedLayer], kept: list[FoldedLayer]) -> tuple[list[str], int]:
    body = [
        text(_MARGIN, 46, f"{len(folded)} {'layer' if len(folded) == 1 else 'layers'} folded, {len(kept)} stay", "title"),
        text(_MARGIN, 66, "The whole network, one sample, in the order of execution:", "dim"),
    ]
    rows, top = strips(plan, _MARGIN, 80)
    body += rows
    entries = ((BEFORE, "folds: as written"), (AFTER, "folded"), (STAYS, "stays"), (OTHER, "all other ops"))
    body.append(legend(entries, _MARGIN, top))
    if not folded:
        return body, top + 40
    top += 44
    about = "Kernels of each folded layer, outputs down and inputs across: as written, and with its channels ordered by group:"
    body.append(text(_MARGIN, top, about, "dim"))
    kinds = (
        (FULL, "K×K kernel"),
        (SOME, "group with gaps"),
        (CENTRE, "centre tap only"),
        (MIXED, "centre taps and zeros"),
        ("frame", "zero"),
    )
    body.append(legend(kinds, _MARGIN, top + 12))
    return body, top + 44


def _card(layer: FoldedLayer, index: int, left: int, top: int) -> str:
    parts = [
        f'<rect class="card" x="{left}" y="{top}" width="{_CARD}" height="{_CARD_HEIGHT}" rx="6"/>',
        text(left + 12, top + 22, _shortened(layer.name, 40), "name"),
        text(left + 12, top + 38, _shortened(layer.kind, 48), "dim"),
        text(left + 12, top + 53, layer.geometry, "dim"),
    ]
    structure = ""
    if layer.kernel_map is not None:
        written, ordered = (rows_of(layer.kernel_map, ordered=flag) for flag in (False, True))
        parts.append(_map(written, f"m{index}a", left + 12, top + 64))
        if ordered != written:
            wide = round(_MAP * min(1.0, len(written[0]) / len(written)))
            parts.append(_map(ordered, f"m{index}b", left + 28 + wide, top + 64))
        groups = len(layer.kernel_map.groups)
        structure = f"{groups} group{'' if groups == 1 else 's'}"
        structure += ": as written, and channels ordered by group" if ordered != written else ""
    size = f"{amount(4 * layer.parameters_before, 'B')} to {amount(4 * layer.parameters, 'B')}"
    facts = (
        structure,
        f"{amount(layer.ops_before)} nodes to 1, {amount(2 * layer.macs_before)} to {amount(2 * layer.macs)} FLOPs",
        f"{size}, error {layer.max_relative_error:.0e}",
    )
    parts += [text(left + 12, top + 80 + _MAP + 16 * line, fact, "dim") for line, fact in enumerate(facts)]
    return "".join(parts)


def _map(rows: list[Row], name: str, left: int, top: int) -> str:
    """A map of at most ``_MAP`` pixels a side; each different row is defined once."""
    width, height = len(rows[0]), len(rows)
    scale = _MAP / max(width, height)
    names = {row: f"{name}r{index}" for index, row in enumerate(dict.fromkeys(rows))}
    defined = "".join(f'<g id="{key}">{_runs(row)}</g>' for row, key in names.items())
    used = "".join(f'<use href="#{names[row]}" y="{n}"/>' for n, row in enumerate(rows))
    return (
        f"<defs>{defined}</defs>"
        f'<g transform="translate({left} {top}) scale({scale:.4f})" shape-rendering="crispEdges">{used}</g>'
        f'<rect class="frame" x="{left}" y="{top}" width="{width * scale:.1f}" height="{height * scale:.1f}"/>'
    )


def _runs(row: Row) -> str:
    """Neighbours of a kind as one rectangle."""
    parts, start = [], 0
    for kind, cells in groupby(row):
        length = len(list(cells))
        if kind != ZERO:
            parts.append(f'<rect class="{kind}" x="{start}" width="{length}" height="1"/>')
        start += length
    return "".join(parts)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
