"""`edgefold matrix`: many models in every format and precision, in one table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.artifact import Format, Precision
from edgefold.cli.options import Device, Json, LoweringChoice, Threads, Trust
from edgefold.errors import UsageError

_MODEL_FILES = (".onnx", ".pt2", ".py", ".json")  # any other file that is there is a list

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.matrix.cells import CellResult, Entry
    from edgefold.matrix.matrix import Matrix


def matrix(
    models: Annotated[
        str,
        typer.Option(
            "--models",
            metavar="LIST",
            help="Names with commas between them, or a file with one model a line: NAME [KEY=VALUE …].",
            show_default=False,
        ),
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results; a run goes on from what is there.", show_default=False)
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option("--formats", "--format", "-f", help="Formats, with commas between them.", show_default="all"),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", "-p", help="Precisions, with commas between them.", show_default="fp32, int8"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Models at work at once on this machine.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Compute on the workers of this Dask scheduler.")
    ] = None,
    cell_time: Annotated[float, typer.Option("--cell-time", min=1, help="Seconds that one cell may take.")] = 900.0,
    cell_memory: Annotated[float, typer.Option("--cell-memory", min=0.1, help="Gigabytes that one cell may use.")] = 8.0,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Calibration samples; random numbers where a model brings no data.")
    ] = 64,
    bench: Annotated[bool, typer.Option("--bench", help="Also measure each file.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Compute anew what failed before.")] = False,
    lowering: LoweringChoice = None,
    device: Device = "host",
    threads: Threads = 1,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Export and verify many models in every format and precision. Resumable; one failure stops nothing."""
    from edgefold.cli.output import output, progress

    with output(as_json) as out:
        from edgefold.device_bench.runners import open_runner
        from edgefold.matrix.cells import Caps, CellOptions
        from edgefold.matrix.matrix import run_matrix
        from edgefold.pipeline import as_format, as_precision
        from edgefold.schemes import combinations, left_out

        open_runner(device)  # contacts nothing
        entries = _entries(models)
        wanted_formats = [as_format(name) for name in _names(formats, Format)]
        wanted_precisions = [as_precision(name) for name in _names(precisions, (Precision.FP32, Precision.INT8))]
        options = CellOptions(
            samples=samples,
            lowering=lowering or "auto",
            bench=bench,
            device=device,
            threads=threads,
            trust=trust,
        )
        total = len(entries) * len(combinations(wanted_formats, wanted_precisions))
        notes = left_out(wanted_formats, wanted_precisions)
        with progress(f"{total} cells") as say:
            done = 0

            def step(result: CellResult) -> None:
                nonlocal done
                done += 1
                end = "ok" if result.passed else f"{result.error} at {result.stage}"
                say(f"[{done}/{total}] {result.model} {result.format}-{result.precision}: {end}")

            found = run_matrix(
                entries,
                wanted_formats,
                wanted_precisions,
                out_dir,
                options,
                Caps(cell_time, round(cell_memory * 1e9)),
                jobs=jobs,
                scheduler=scheduler,
                retry=retry,
                progress=step,
            )
        out.show(found, lambda: [*_shown(found, out_dir), *(f"Note: {note}" for note in notes)])
    raise typer.Exit(0 if found.passed else 1)


def _names(given: Iterable[str] | None, default: Iterable[str]) -> list[str]:
    """``["onnx,tflite", "executorch"]`` -> one name an element, each once."""
    found = [name.strip() for text in given or () for name in text.split(",")]
    return list(dict.fromkeys(name for name in found if name)) or list(default)


def split_names(text: str) -> list[str]:
    """The parts of a text between commas; commas inside brackets and quotes do not count."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth = max(0, depth + (char in "[{(") - (char in "]})"))
        parts[-1] += char
    return parts


def _quoted(line: str) -> str:
    """The line with the quotes and spaces inside brackets kept from the shell's rules, so that ``x=["a", 1]`` is JSON still.
    Brackets inside a string of the JSON do not count."""
    found, depth, quote, escaped = "", 0, "", False
    for char in line:
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = bool(depth) and char == "\\" and not escaped
        elif char == '"' or (char == "'" and not depth):
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth = max(0, depth - 1)
        found += f"\\{char}" if depth and char in "\"' \\#" else char
    return found


def _entries(models: str) -> list[Entry]:
    """The models of a list: names with commas, or the lines of a file (``#`` starts a comment).

    Raises:
        UsageError: a line has an argument without a value, or there is no model.
    """
    import shlex

    from edgefold.cli.sources import arguments
    from edgefold.matrix.cells import Entry

    path = Path(models)
    if path.suffix == ".txt" and not path.is_file():
        raise UsageError(f"there is no list '{models}'; give a file with one model a line, or names with commas between them")
    is_list = path.is_file() and path.suffix not in _MODEL_FILES
    lines = path.read_text(encoding="utf-8").splitlines() if is_list else split_names(models)
    found = []
    for line in lines:
        try:
            name, *pairs = shlex.split(_quoted(line), comments=True) or [""]
        except ValueError as error:
            raise UsageError(f"model '{line.strip()}' cannot be read: {error}; close every quote") from error
        if name:
            found.append(Entry(name, arguments(pairs)))
    if not found:
        raise UsageError(f"'{models}' names no model; give names with commas between them, or a file with one a line")
    return found


def _shown(found: Matrix, out_dir: Path) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.matrix.page import causes, columns, grid, headline, text

    names = columns(found)
    yield table(("model", *names), [(model, *map(text, cells)) for model, cells in grid(found)], "l" + "r" * len(names))
    yield f"{headline(found)}, {found.cached} of them from an earlier run."
    yield from (f"FAILED {cause}" for cause in causes(found.cells))
    yield f"Results: {out_dir / 'matrix.json'} and {out_dir / 'matrix.html'}"
