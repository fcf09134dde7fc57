"""The commands in one place. Command modules import nothing heavy at their top, so `edgefold --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from edgefold.cli import (
    bench,
    convert,
    devices,
    doctor,
    fold,
    inspect,
    matrix,
    models,
    profile,
    quantize,
    run,
    ship,
    smaller,
    verify,
)

app = typer.Typer(
    name="edgefold",
    help="Fold, quantize, export, verify, measure and package lightweight convolutional PyTorch models for phones and boards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    ship.ship,
    fold.fold,
    quantize.quantize,
    convert.export,
    verify.verify,
    run.run,
    bench.bench,
    bench.compare,
    profile.profile,
    profile.diagnose,
    devices.devices,
    devices.history,
    models.models,
    models.train,
    smaller.prune,
    smaller.distill,
    matrix.matrix,
    inspect.inspect,
    doctor.doctor,
):
    app.command()(command)

runner = typer.Typer(help="The native runner for devices without Python.", rich_markup_mode=None, no_args_is_help=True)
runner.command()(devices.build)
app.add_typer(runner, name="runner")


@runner.callback()
def _runner() -> None:
    """A group with one command today."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgefold {version('edgefold')}")
        raise typer.Exit


@app.callback()
def edgefold(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""
