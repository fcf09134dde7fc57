"""The cells of a matrix: what one is, what it gives, and the key under which its result is kept.

The key is the SHA-256 of all that a result depends on: the model's name and arguments and the bytes of its files
(`edgefold.models.fingerprint`), the format, the precision, the options, and the versions of Edgefold and of the packages that
make and run files. A cell whose key has a result is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from edgefold.artifact import Format, Precision
from edgefold.schemes import combinations

# Whether a cell's process is forked from that of its model. Elsewhere it loads all by itself: not all libraries bear it.
FORKS: Final = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the list: a name as `edgefold.models.sources` takes it, and arguments of the function that makes it."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name with its arguments."""
        return " ".join((self.name, *(f"{key}={json.dumps(value)}" for key, value in self.kwargs.items())))


@dataclass(frozen=True, slots=True)
class CellOptions:
    """What every cell of a matrix has in common.

    ``samples`` are used for calibration, ``parity_samples`` are compared with torch. ``bench`` measures each file on ``device``.
    """

    samples: int = 64
    parity_samples: int = 16
    lowering: str = "auto"
    bench: bool = False
    device: str = "host"
    threads: int = 1
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Caps:
    """What one cell may use: wall time in seconds, and bytes of memory of each of its processes.

    The first cell of a model in a run also has the time of loading and folding, the first of a precision that of calibration.
    """

    time_s: float = 900.0
    memory_bytes: int = 8 * 10**9


@dataclass(frozen=True, slots=True)
class Cell:
    """One model in one format and precision."""

    entry: Entry
    format: Format
    precision: Precision


@dataclass(frozen=True, slots=True)
class CellResult:
    """What became of a cell. ``stage``, ``error`` and ``message`` say where and why it failed and are empty if it did not.

    ``error`` is a class of `edgefold.errors`, or ``Timeout``, ``Memory``, ``Crash`` or ``Cluster``. The SQNR in dB is against
    the fake-quantized network (``sqnr_db``) and of that network against the float one (``quantization_db``); ``None`` is no error
    at all, or not measured. ``peak_rss_bytes`` is that of the cell's own processes; it begins with the network that they inherit.
    ``cap`` is what a cell of ``Timeout`` (seconds) or ``Memory`` (bytes) needed more than.
    """

    key: str
    model: str
    format: Format
    precision: Precision
    passed: bool
    stage: str = ""
    error: str = ""
    message: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    max_relative_error: float | None = None
    sqnr_db: float | None = None
    quantization_db: float | None = None
    accuracy: float | None = None
    accuracy_reference: float | None = None
    median_ns: float | None = None
    interval_ns: tuple[float, float] | None = None
    time_s: float = 0.0
    peak_rss_bytes: int = 0
    cap: float | None = None
    random_calibration: bool = False
    date: str = ""


def with_cap(result: CellResult, caps: Caps) -> CellResult:
    """A result with the cap that its cell failed for, if it did."""
    return replace(result, cap=_cap(result, caps))


def is_outgrown(result: CellResult, caps: Caps) -> bool:
    """Whether a cell failed for less than it may use now, or for a cap that is not known."""
    now = _cap(result, caps)
    return now is not None and (result.cap is None or now > result.cap)


def _cap(result: CellResult, caps: Caps) -> float | None:
    return {"Timeout": caps.time_s, "Memory": float(caps.memory_bytes)}.get(result.error)


def cells_of(entries: Sequence[Entry], formats: Sequence[Format], precisions: Sequence[Precision]) -> tuple[Cell, ...]:
    """Every combination that there is, model by model.

    Raises:
        UnsupportedError: a precision is in none of the formats.
    """
    held = combinations(formats, precisions)
    pairs = [(form, precision) for precision in precisions for form in formats if (form, precision) in held]
    return tuple(Cell(entry, form, precision) for entry in entries for form, precision in pairs)


def cell_key(cell: Cell, options: CellOptions, content: str | None = None) -> str:
    """The SHA-256 that stands for all that the result of a cell depends on.

    ``content`` is the `edgefold.models.fingerprint.source_digest` of its model, if the caller knows it already.
    """
    from edgefold.models.fingerprint import source_digest

    settings = asdict(options)
    if not options.bench:
        for name in ("threads", "bench"):
            del settings[name]
    parts = {
        "schema": "edgefold.matrix/1",
        "model": cell.entry.name,
        "kwargs": cell.entry.kwargs,
        "content": source_digest(cell.entry.name) if content is None else content,
        "format": cell.format.value,
        "precision": cell.precision.value,
        "options": settings,
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def failed(cell: Cell, key: str, stage: str, error: str, message: str, *, time_s: float = 0.0, date: str = "") -> CellResult:
    """The result of a cell that came to nothing."""
    return CellResult(
        key=key,
        model=cell.entry.label,
        format=cell.format,
        precision=cell.precision,
        passed=False,
        stage=stage,
        error=error,
        message=" ".join(message.split()),
        time_s=round(time_s, 1),
        date=date,
    )


def plain_cell(cell: Cell) -> dict[str, Any]:
    """A cell as plain data, for a process or a machine elsewhere."""
    return {
        "name": cell.entry.name,
        "kwargs": cell.entry.kwargs,
        "format": cell.format.value,
        "precision": cell.precision.value,
    }


def cell_from(data: Mapping[str, Any]) -> Cell:
    """The cell that `plain_cell` wrote."""
    return Cell(Entry(data["name"], dict(data["kwargs"])), Format(data["format"]), Precision(data["precision"]))


def by_model(todo: Iterable[tuple[Cell, str]], parts: int = 1) -> list[list[tuple[Cell, str]]]:
    """Cells with their keys, those of each model together, each model's in up to ``parts`` lists."""
    models: dict[str, list[tuple[Cell, str]]] = {}
    for cell, key in todo:
        models.setdefault(cell.entry.label, []).append((cell, key))
    groups = []
    for found in models.values():
        size = -(-len(found) // parts)
        groups += [found[start : start + size] for start in range(0, len(found), size)]
    return groups


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in (
        "edgefold",
        "torch",
        "timm",
        "torchvision",
        "onnx",
        "onnxruntime",
        "litert-torch",
        "ai-edge-litert",
        "executorch",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
