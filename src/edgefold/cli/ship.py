"""`edgefold ship`: the whole flow for one network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from edgefold.artifact import MAX_BATCH, Format, Precision
from edgefold.cli.options import (
    Agree,
    Arg,
    Calibration,
    DynamicBatch,
    Equalize,
    Evaluation,
    Exclude,
    Force,
    Formats,
    Io,
    Json,
    Layout,
    LoweringChoice,
    MaxBatch,
    MaxDrop,
    MaxMs,
    MaxSecs,
    MaxSize,
    Observer,
    Out,
    Portable,
    Precisions,
    Preprocess,
    Qat,
    TargetDevice,
    Threads,
    Timing,
    Trust,
    Weights,
    byte_count,
    refuse_limit_without_batch,
    refuse_unused,
)
from edgefold.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.bundle.reader import Bundle

_MAX_SECS = 120.0
ModelOrRecipe = Annotated[
    str | None,
    typer.Argument(
        help="A built-in name (see `edgefold models`), FILE.py:FACTORY, another source, or a recipe FILE.toml.",
        show_default=False,
    ),
]


def ship(
    model: ModelOrRecipe = None,
    out_dir: Out = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", help="A TOML file of a whole run, with pruning and distillation; other options are then its own."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="STAGE", help="Leave out a stage of the recipe: prune, distill, fold, quantize, measure."),
    ] = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Take the times of a recipe's files anew.")] = False,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    formats: Formats = None,
    precisions: Precisions = None,
    qat: Qat = None,
    preprocess: Preprocess = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    observer: Observer = "auto",
    equalize: Equalize = False,
    exclude: Exclude = None,
    max_drop: MaxDrop = None,
    max_ms: MaxMs = None,
    agree: Agree = False,
    explain: Annotated[bool, typer.Option(help="Tell in the report which layers lose accuracy.")] = True,
    lowering: LoweringChoice = None,
    timing: Timing = None,
    max_size: MaxSize = None,
    io: Io = "float32",
    layout: Layout = "nchw",
    dynamic_batch: DynamicBatch = False,
    max_batch: MaxBatch = MAX_BATCH,
    portable: Portable = False,
    device: TargetDevice = None,
    threads: Threads = 1,
    max_secs: MaxSecs = _MAX_SECS,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fold, quantize, export, verify, measure and bundle a network. It ends in one table."""
    from edgefold.bundle.writer import check_output
    from edgefold.cli.output import output
    from edgefold.cli.progress import stages
    from edgefold.cli.sources import ModelChoice

    if recipe is None and model is not None and model.endswith(".toml"):
        recipe, model = Path(model), None
    if recipe is not None:
        changed = (
            observer != "auto",
            equalize,
            agree,
            io != "float32",
            layout != "nchw",
            dynamic_batch,
            timing is not None,
            device is not None,
            max_batch != MAX_BATCH,
            portable,
            not explain,
            trust,
            threads != 1,
            max_secs != _MAX_SECS,
        )
        others = (qat, preprocess, exclude, max_drop, max_ms, any(changed) or None)
        _refuse_options(model, arg, weights, formats, precisions, calibration, evaluation, lowering, max_size, *others)
        _ship_recipe(recipe, out_dir, skip or [], remeasure, force, as_json)
    if model is None:
        raise UsageError("the model is missing; name one (see `edgefold models`), or give a recipe")
    if skip:
        raise UsageError(f"--skip {skip[0]} leaves out a stage of a recipe, but there is none; give --recipe FILE.toml")
    if remeasure:
        raise UsageError("--remeasure is for the times that a recipe keeps, but there is none; times are always new here")
    wanted = precisions or [Precision.INT8]
    refuse_unused(wanted, qat=qat, observer=observer, equalize=equalize, exclude=exclude, portable=portable)
    refuse_limit_without_batch(max_batch, dynamic_batch=dynamic_batch)
    with output(as_json) as out:
        choice = ModelChoice(model, arg, weights, trust, preprocess, qat)
        target = Path(choice.short_name) if out_dir is None else out_dir
        most_bytes = byte_count(max_size)
        check_output(target, force=force)  # before the seconds that it takes to load what follows

        from edgefold.bundle.results import summarize
        from edgefold.device_bench import BenchOptions
        from edgefold.network import DEFAULT_MAX_DROP, DEFAULT_PRECISIONS, ShipOptions
        from edgefold.shipping import ship_network

        options = ShipOptions(
            formats=tuple(formats or Format),
            precisions=tuple(precisions or DEFAULT_PRECISIONS),
            device=device or "host",
            native=device is not None and not portable,
            lowering=lowering or "auto",
            observer=observer,
            equalize=equalize,
            exclude=tuple(exclude or ()),
            max_drop=DEFAULT_MAX_DROP if max_drop is None else max_drop,
            mixed_drop=max_drop,
            max_ms=max_ms,
            agree=agree,
            io=io,
            layout=layout,
            dynamic_batch=dynamic_batch,
            portable=portable,
            max_batch=max_batch,
            explain=explain,
            bench=BenchOptions(threads=threads, max_secs=max_secs),
            force=force,
            timing=timing,
            max_size_bytes=most_bytes,
        )
        with stages() as progress:
            bundle = ship_network(choice.load(calibration, evaluation), target, options, progress)
        shipment = bundle.shipment
        out.show(summarize(shipment), lambda: shipped(bundle))
    raise typer.Exit(0 if shipment.passed else 1)


def _refuse_options(model: str | None, *options: object) -> None:
    if model is not None or any(option is not None for option in options):
        raise UsageError(
            "a recipe says itself what is shipped and how; give only --out, --skip, --remeasure, --force and --json with it"
        )


def _ship_recipe(path: Path, out_dir: Path | None, skip: list[str], remeasure: bool, force: bool, as_json: bool) -> NoReturn:
    from edgefold.cli.output import output
    from edgefold.cli.progress import stages

    with output(as_json) as out:
        from edgefold.bundle.results import summarize
        from edgefold.recipe.run import run_recipe
        from edgefold.recipe.schema import read_recipe

        recipe = read_recipe(path)
        with stages() as progress:
            target = out_dir or Path(path.stem)
            done = run_recipe(recipe, target, skip=skip, remeasure=remeasure, force=force, progress=progress)
        out.show(summarize(done.bundle.shipment), lambda: shipped(done.bundle))
    raise typer.Exit(0 if done.bundle.shipment.passed else 1)


def shipped(bundle: Bundle) -> Iterable[RenderableType]:
    """The table of a bundle and what to know about it."""
    from edgefold.cli.output import table
    from edgefold.report.plan_pictures import closing_text
    from edgefold.report.table import ALIGN, HEADERS, cells, rows
    from edgefold.report.verdict import verdict

    shipment = bundle.shipment
    found = verdict(shipment)
    yield table(HEADERS, [cells(row) for row in rows(shipment)], ALIGN, title=shipment.name)
    yield f"{found.headline}."
    yield from found.findings
    yield from (
        f"{variant.name}: {closing_text(variant.lowering)}"
        for variant in shipment.variants
        if variant.lowering is not None and variant.lowering.timing is not None
    )
    yield from (f"FAILED {problem}" for problem in found.problems)
    yield from (f"Note: {note}" for note in shipment.notes)
    yield f"Bundle: {bundle.path} and {bundle.archive}; report: {bundle.report}"
