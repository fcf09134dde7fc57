"""A matrix as people read it: one line a model, one column a format and precision, then the causes of what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgefold.matrix.cells import CellResult
from edgefold.report.table import duration, size
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    from edgefold.matrix.matrix import Matrix


def columns(matrix: Matrix) -> tuple[str, ...]:
    """The names of the columns: ``onnx-int8`` and so on, in the order of the cells."""
    return tuple(dict.fromkeys(f"{cell.format}-{cell.precision}" for cell in matrix.cells))


def grid(matrix: Matrix) -> list[tuple[str, list[CellResult | None]]]:
    """(model, its result in each column)."""
    models: dict[str, dict[str, CellResult]] = {}
    for cell in matrix.cells:
        models.setdefault(cell.model, {})[f"{cell.format}-{cell.precision}"] = cell
    return [(model, [found.get(column) for column in columns(matrix)]) for model, found in models.items()]


def text(cell: CellResult | None) -> str:
    """A cell in a few words: how near it is to torch, and its latency if that was measured; or where it failed."""
    if cell is None:
        return ""
    if not cell.passed:
        return f"FAILED {cell.stage}"
    if cell.max_relative_error is None:
        near = "ok"
    elif scheme_of(cell.precision).tolerance is not None:
        near = f"{cell.max_relative_error:.0e}"
    else:
        near = "exact" if cell.sqnr_db is None else f"{cell.sqnr_db:.1f} dB"
    return near if cell.median_ns is None else f"{near}, {duration(cell.median_ns)}"


def headline(matrix: Matrix) -> str:
    """How many cells passed."""
    return f"{sum(cell.passed for cell in matrix.cells)} of {len(matrix.cells)} cells pass"


def causes(cells: Sequence[CellResult]) -> list[str]:
    """One line for each cell that failed."""
    return [f"{cell.model}, {cell.format}-{cell.precision}: {cell.stage}: {cell.message}" for cell in cells if not cell.passed]


def kinds(cells: Sequence[CellResult]) -> list[tuple[str, int]]:
    """How many cells failed at which stage with which error, the most frequent first."""
    return Counter(f"{cell.stage}: {cell.error}" for cell in cells if not cell.passed).most_common()


def render(matrix: Matrix) -> str:
    """The matrix as an HTML page that needs no network, no script and no second file."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("edgefold.matrix", "."), PackageLoader("edgefold.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("matrix.html.j2").render(
        matrix=matrix,
        headline=headline(matrix),
        columns=columns(matrix),
        rows=[(model, [(cell, text(cell), _tip(cell)) for cell in cells]) for model, cells in grid(matrix)],
        kinds=kinds(matrix.cells),
        causes=causes(matrix.cells),
    )


def _tip(cell: CellResult | None) -> str:
    if cell is None:
        return ""
    if not cell.passed:
        return cell.message
    parts = [f"{cell.time_s:.0f} s"]
    if cell.size_bytes is not None:
        parts.insert(0, size(cell.size_bytes))
    if cell.accuracy is not None and cell.accuracy_reference is not None:
        parts.append(f"accuracy {cell.accuracy:.2%}, in torch {cell.accuracy_reference:.2%}")
    if cell.quantization_db is not None:
        parts.append(f"quantized against float {cell.quantization_db:.1f} dB")
    return ", ".join(parts)
