"""`edgefold models` and `edgefold train`: what there is, and how to make more of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.cli.options import Arg, Json, Weights
from edgefold.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.cli.output import Output
    from edgefold.cli.sources import ModelChoice
    from edgefold.models.train_options import TrainOptions

ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Side to which images of a folder are scaled.")]
Flip = Annotated[
    bool,
    typer.Option("--flip/--no-flip", help="Mirror half of the training pictures; not for digits, text or what has a left side."),
]
CropPadding = Annotated[
    int | None,
    typer.Option(
        "--crop-padding", min=0, help="Pixels by which a training picture may move.", show_default="2; of train --qat 0"
    ),
]


def models(as_json: Json = False) -> None:
    """List the built-in models."""
    from edgefold.cli.output import output, table

    with output(as_json) as out:
        from edgefold.models.registry import list_models
        from edgefold.report.table import percent

        found = list_models()

        def picture() -> Iterable[RenderableType]:
            yield table(
                ("name", "what it is", "accuracy", "parameters"),
                [
                    (
                        info.name,
                        info.summary,
                        "" if info.accuracy is None else percent(info.accuracy),
                        "" if info.effective_parameters is None else f"{info.effective_parameters:,}",
                    )
                    for info in found
                ],
                "lwrr",
            )

        out.show(found, picture)


def train(
    network: Annotated[
        str, typer.Argument(help="A built-in network, e.g. hetnet, or a model of any source.", show_default=False)
    ],
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A folder of images (one folder a class) or of IDX files, an .npz of images or floats, or FILE.py:FUNCTION.",
            show_default="Fashion-MNIST of the Debian package",
        ),
    ] = None,
    image_size: ImageSize = None,
    arg: Arg = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Times through the data.", show_default="24, and 2 with --qat")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=2, help="Samples of a step.", show_default="128, and 64 with --qat")
    ] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="sgd or adamw.", show_default="sgd")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="The peak.", show_default="0.1, and 0.002 with --qat")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="Of weights, not of biases and norms.", show_default="0.0005")
    ] = None,
    flip: Flip = True,
    crop_padding: CropPadding = None,
    qat: Annotated[bool, typer.Option("--qat", help="Train on a model of any source, with its weights, as INT8.")] = False,
    weights: Weights = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network; resumable, seeded. With --qat, train a trained one on as INT8."""
    from edgefold.cli.output import output

    with output(as_json) as out:
        if qat:
            from edgefold.cli.qat import train_as_int8
            from edgefold.cli.sources import ModelChoice
            from edgefold.qat_training import QatOptions

            if resume or optimizer is not None or weight_decay is not None:
                raise UsageError("--qat is one short run of plain SGD; leave out --resume, --optimizer and --weight-decay")
            chosen = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "crop_padding": crop_padding}
            numbers = {key: value for key, value in chosen.items() if value is not None}
            how = QatOptions(seed=seed, flip=flip, **numbers)  # type: ignore[arg-type]  # each has its own type
            train_as_int8(ModelChoice(network, arg, weights), (data, image_size), out_dir, how, out)
            return
        import torch

        from edgefold.cli.sources import ModelChoice, arguments
        from edgefold.models.data import load_training_data
        from edgefold.models.fit import with_channels
        from edgefold.models.networks import NETWORKS, build_network, fitting_arguments
        from edgefold.models.recipe import write_checkpoint
        from edgefold.models.train import TrainOptions
        from edgefold.models.train import train as run
        from edgefold.models.train_options import check_options
        from edgefold.report.table import percent

        given = {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "crop_padding": crop_padding,
        }
        picked = {key: value for key, value in given.items() if value is not None}
        options = TrainOptions(seed=seed, flip=flip, **picked)  # type: ignore[arg-type]  # each has its own type
        check_options(options)
        if network not in NETWORKS:
            _train_source(ModelChoice(network, arg, weights), (data, image_size), options, out_dir, resume, out)
            return
        if weights is not None:
            raise UsageError(f"'{network}' is trained from scratch and takes no --weights; leave them out")
        source = with_channels(load_training_data(data, image_size=image_size))
        kwargs = fitting_arguments(network, arguments(arg or []), source)
        torch.manual_seed(seed)
        model = build_network(network, **kwargs)
        result = run(model, source, options, out=out_dir, resume=resume)
        recipe = write_checkpoint(out_dir, network, model, network, kwargs, source, result)
        out.show(
            recipe,
            lambda: [
                f"{network}: {percent(recipe.accuracy)} on {recipe.test_images:,} test images of {recipe.data} "
                f"after {options.epochs} epoch{'s' if options.epochs != 1 else ''} in {recipe.time_s:.0f} s",
                f"weights: {out_dir / network}.safetensors",
            ],
        )


def _train_source(
    choice: ModelChoice, data: tuple[str | None, int | None], options: TrainOptions, folder: Path, resume: bool, out: Output
) -> None:
    """Trains a model of any source, and writes what comes out as a source of its own."""
    from edgefold.cli.sources import arguments
    from edgefold.models.data import load_training_data
    from edgefold.models.derived import read_record, write_derived
    from edgefold.models.loaded import fixed_graph, refuse_fixed_graph
    from edgefold.models.train import train as run
    from edgefold.recipe.run import training_data
    from edgefold.recipe.stages import start

    if choice.name.endswith(".pt2"):
        raise fixed_graph(choice.name, "trained")  # without loading it, which can run code
    network = choice.load()
    refuse_fixed_graph(network.module, choice.name, "trained")
    source = training_data(network, load_training_data(data[0], image_size=data[1]), choice.name)
    work = start(network, choice.name, arguments(choice.arg or []))
    result = run(network.module, source, options, out=folder, resume=resume)
    sentence = (
        f"Trained for {options.epochs} epoch{'s' if options.epochs != 1 else ''}: "
        f"{result.accuracy:.2%} top-1 on {len(source.test):,} test {source.test.noun} of {source.name}."
    )
    history = (*work.history, sentence)
    record = write_derived(folder, network.module, work.source, work.kwargs, work.removed, history, result.accuracy)
    out.show(read_record(record), lambda: [sentence, f"network: {record}"])
