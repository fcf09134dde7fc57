"""`edgefold prune` and `edgefold distill`: networks made smaller or better, kept as a source of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.artifact import Format, Precision
from edgefold.cli.models import CropPadding, Flip, ImageSize
from edgefold.cli.options import Arg, Device, Force, Json, Model, Trust, Weights
from edgefold.errors import UsageError

if TYPE_CHECKING:
    from edgefold.recipe.schema import ShipRecipe

_Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder of the new network.", show_default=False)]
_Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A folder of images (one folder a class) or of IDX files, an .npz, or FILE.py:FUNCTION.",
        show_default="Fashion-MNIST of the Debian package",
    ),
]
_Rate = Annotated[float | None, typer.Option("--learning-rate", help="The peak.", show_default="0.02")]
_Seed = Annotated[int, typer.Option("--seed")]


def prune(
    model: Model,
    out_dir: _Folder,
    flops: Annotated[
        float | None, typer.Option("--flops", help="The share of the multiply-accumulates that may stay, e.g. 0.5.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="The latency to reach on the device, in milliseconds.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=1, help="How many whole blocks to remove, the least important first.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="The share of single weights to set to zero; makes no file faster."),
    ] = None,
    device: Device = "host",
    format: Annotated[Format, typer.Option("--format", "-f", help="The format whose latency counts.")] = Format.ONNX,
    precision: Annotated[
        Precision, typer.Option("--precision", "-p", help="The precision whose latency counts.")
    ] = Precision.FP32,
    keep: Annotated[float, typer.Option("--keep", help="The share of each layer's channels that stays in any case.")] = 0.1,
    round_to: Annotated[
        int,
        typer.Option(
            "--round-to",
            min=1,
            help="Channel counts are multiples of this, or of a half or quarter where the target needs it; 1 for any count.",
        ),
    ] = 16,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds of pruning and fine-tuning, each part of the way to the target.")
    ] = 1,
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Epochs of fine-tuning after each round.")] = 1,
    data: _Data = None,
    image_size: ImageSize = None,
    learning_rate: _Rate = None,
    flip: Flip = True,
    crop_padding: CropPadding = None,
    seed: _Seed = 0,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Remove channels, blocks or single weights, then fine-tune.

    Channels go until a target is met, the least important first.
    """
    from edgefold.cli.sources import arguments
    from edgefold.recipe.checks import check_device, check_trained
    from edgefold.recipe.schema import DataSection, ModelSection, PruneSection, ShipRecipe, check_pruning, targets

    section = PruneSection(flops, latency_ms, blocks, sparsity, device, format, precision, rounds, epochs, keep, round_to)
    if len(targets(section)) != 1:
        raise UsageError(
            "the target of pruning is missing or there are several; "
            "give one of --flops SHARE, --latency-ms MS, --blocks N and --sparsity SHARE"
        )
    check_pruning(section)
    check_device(device, "--device")
    train = _train(learning_rate, seed, flip, crop_padding)
    check_trained(train, section, None)
    choice = ModelSection(model, arguments(arg or []), None if weights is None else str(weights), trust)
    _run(ShipRecipe(choice, DataSection(data, image_size), train, prune=section), out_dir, force, as_json)


def distill(
    student: Model,
    teacher: Annotated[str, typer.Option("--teacher", help="The model to learn from; any source.", show_default=False)],
    out_dir: _Folder,
    teacher_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-arg",
            "--teacher-kwargs",
            metavar="KEY=VALUE|JSON",
            help="As --arg, of the function that makes the teacher.",
        ),
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="A .safetensors or .pt file of weights to load into the teacher.")
    ] = None,
    hint: Annotated[
        list[str] | None,
        typer.Option(
            "--hint",
            metavar="STUDENT=TEACHER",
            help="A layer of each whose outputs are compared as well, e.g. features.3=features.5; can be given more than once.",
        ),
    ] = None,
    hint_weight: Annotated[float, typer.Option("--hint-weight", min=0.0, help="How much the hints count in the loss.")] = 1.0,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 8,
    temperature: Annotated[float, typer.Option("--temperature", help="T: how soft the teacher's answers are.")] = 4.0,
    alpha: Annotated[float, typer.Option("--alpha", help="Share of the teacher in the loss, 0 to 1.")] = 0.7,
    data: _Data = None,
    image_size: ImageSize = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="The peak.", show_default="0.1")] = None,
    flip: Flip = True,
    crop_padding: CropPadding = None,
    seed: _Seed = 0,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a model with the help of another one, which knows more."""
    from edgefold.cli.sources import arguments
    from edgefold.recipe.schema import DataSection, DistillSection, ModelSection, ShipRecipe, check_distilling

    section = DistillSection(
        epochs,
        teacher,
        arguments(teacher_arg or []),
        None if teacher_weights is None else str(teacher_weights),
        temperature,
        alpha,
        tuple(hint or ()),
        hint_weight,
    )
    check_distilling(section)
    train = _train(0.1 if learning_rate is None else learning_rate, seed, flip, crop_padding)
    choice = ModelSection(student, arguments(arg or []), None if weights is None else str(weights), trust)
    _run(ShipRecipe(choice, DataSection(data, image_size), train, distill=section), out_dir, force, as_json)


def _train(learning_rate: float | None, seed: int, flip: bool, crop_padding: int | None) -> dict[str, float | int]:
    from edgefold.recipe.schema import check_training

    given = {"learning_rate": learning_rate, "crop_padding": crop_padding}
    # What is the default is left out: kept stages are found again by what is given.
    found = {
        "seed": seed,
        **({} if flip else {"flip": False}),
        **{key: value for key, value in given.items() if value is not None},
    }
    check_training(found)
    return found


def _run(recipe: ShipRecipe, out_dir: Path, force: bool, as_json: bool) -> None:
    from edgefold.cli.output import output
    from edgefold.cli.progress import stages

    with output(as_json) as out:
        from edgefold.models.derived import RECORD_NAME, read_record, write_derived
        from edgefold.models.fingerprint import WEIGHTS_NAME
        from edgefold.pipeline import check_free
        from edgefold.recipe.run import run_stages

        for name in (RECORD_NAME, WEIGHTS_NAME):  # the stages beside them are what an interrupted run goes on from
            check_free(out_dir / name, force=force)
        with stages() as progress:
            work = run_stages(recipe, out_dir / "stages", progress=progress)
        record = write_derived(out_dir, work.network.module, work.source, work.kwargs, work.removed, work.history, work.accuracy)
        out.show(
            read_record(record),
            lambda: [
                *work.network.notes,  # with the history
                f"Network: {record}, a model for ship, export and all commands that take one",
            ],
        )
