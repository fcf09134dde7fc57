"""`edgefold fold`: what becomes of each layer, how it would be computed, and what the whole network saves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefold.artifact import Format
from edgefold.cli.options import (
    Arg,
    Force,
    Formats,
    Json,
    LoweringChoice,
    Model,
    Precisions,
    Trust,
    Weights,
    refuse_other_than_svg,
)
from edgefold.errors import UsageError


def fold(
    model: Model,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    draw_file: Annotated[Path | None, typer.Option("--draw", help="Also draw the plan, as an .svg file.")] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            "--costs",
            metavar="DEVICE",
            help="Also measure what each way to compute a layer costs there (host, ssh://USER@BOARD, adb://SERIAL).",
        ),
    ] = None,
    formats: Formats = None,
    precisions: Precisions = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Choose by what layers cost there: host, ssh://USER@BOARD, adb://SERIAL. Nothing is contacted.",
            show_default="that of --costs, or host",
        ),
    ] = None,
    lowering: LoweringChoice = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fold every linear convolution into one, and show the plan.

    The plan has what became of each layer and, for each --format and --precision, the ways to compute it with their costs on
    --device, measured or estimated, the way that is chosen and why; and what the whole network has before and after.

    With --costs, the times of the layers on a device are measured and kept: export and ship for that device choose by them.
    --format and --precision then limit what is measured too, --force measures what is known already.
    """
    from edgefold.cli.output import output

    if costs is not None and device not in (None, costs):
        raise UsageError(f"--costs is for '{costs}' and --device for '{device}'; give one of them, or the same device twice")
    refuse_other_than_svg(draw_file)
    where = device or costs or "host"
    with output(as_json) as out:
        from edgefold.cli.fold_tables import fold_table, lowering_tables
        from edgefold.cli.progress import stages
        from edgefold.cli.sources import ModelChoice
        from edgefold.device_bench.runners import open_runner
        from edgefold.export.fold.draw import draw
        from edgefold.export.lower.plans import lowering_plans
        from edgefold.network import DEFAULT_PRECISIONS
        from edgefold.pipeline import check_free
        from edgefold.pipeline import fold as run
        from edgefold.results import to_dict
        from edgefold.schemes import combinations

        forms, numbers = tuple(formats or Format), tuple(precisions or DEFAULT_PRECISIONS)
        combinations(forms, numbers)  # refuses a precision that is in none
        open_runner(where)  # refuses what is no device
        if draw_file is not None:
            check_free(draw_file, force=force)
        with stages(f"folding {model}") as progress:
            network = ModelChoice(model, arg, weights, trust).load()
            folded = run(network.module, network.example_inputs, progress=progress)
        plan = folded.plan
        if draw_file is not None:
            draw(plan, draw_file, force=force)
        found = None
        if costs is not None:
            from edgefold.cli.costs import measure, measured

            found = measure(folded, costs, formats, precisions, again=force)
        plans = lowering_plans(folded.program, forms, numbers, lowering=lowering or "auto", device=where)
        data: dict[str, Any] = {"lowerings": [_plain(to_dict(one)) for one in plans]}
        if found is None:
            data = {**to_dict(plan), **data}
        else:
            data = {"schema": "edgefold.FoldCosts/1", "plan": plan, **data, **found.to_json()}
        out.show(
            data, lambda: [*fold_table(plan), *lowering_tables(plan, plans), *(measured(found) if found is not None else ())]
        )


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    """A lowering plan without the maps, which the layers of the fold plan have."""
    return {**plan, "layers": [{k: v for k, v in layer.items() if k != "kernel_map"} for layer in plan["layers"]]}
