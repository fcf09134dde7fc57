"""`edgefold fold` and `export`: one stage of the flow at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.artifact import MAX_BATCH, Precision
from edgefold.cli.options import (
    Agree,
    Arg,
    Calibration,
    DynamicBatch,
    Equalize,
    Exclude,
    Force,
    Formats,
    Io,
    Json,
    Layout,
    LoweringChoice,
    MaxBatch,
    MaxSize,
    Model,
    Observer,
    OneFormat,
    OnePrecision,
    Out,
    Portable,
    Precisions,
    Preprocess,
    Qat,
    TargetDevice,
    Timing,
    Trust,
    Weights,
    byte_count,
    refuse_unused,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from edgefold.artifact import Artifact, TensorSpec
    from edgefold.export.plan import FoldPlan, LoweringPlan
    from edgefold.export.program import QuantizedProgram


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
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fold every linear convolution into one conv, and show the plan layer by layer.

    With --costs, the times of the layers on a device are measured and kept: export and ship for that device choose by them.
    --format and --precision limit what is measured, --force measures what is known too.
    """
    from edgefold.cli.output import output, progress

    with output(as_json) as out:
        from edgefold.cli.sources import ModelChoice
        from edgefold.export.fold.draw import draw
        from edgefold.pipeline import check_free
        from edgefold.pipeline import fold as run

        if draw_file is not None:
            check_free(draw_file, force=force)

        with progress(f"folding {model}"):
            network = ModelChoice(model, arg, weights, trust).load()
            folded = run(network.module, network.example_inputs)
        plan = folded.plan
        if draw_file is not None:
            draw(plan, draw_file, force=force)
        if costs is None:
            out.show(plan, lambda: _folded(plan))
            return
        from edgefold.cli.costs import measure, measured

        found = measure(folded, costs, formats, precisions, again=force)
        result = {"schema": "edgefold.FoldCosts/1", "plan": plan, **found.to_json()}
        out.show(result, lambda: [*_folded(plan), *measured(found)])


def export(
    model: Model,
    format: OneFormat,
    precision: OnePrecision = Precision.FP32,
    out_file: Out = None,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    qat: Qat = None,
    preprocess: Preprocess = None,
    calibration: Calibration = None,
    observer: Observer = "auto",
    equalize: Equalize = False,
    exclude: Exclude = None,
    agree: Agree = False,
    lowering: LoweringChoice = None,
    timing: Timing = None,
    max_size: MaxSize = None,
    io: Io = "float32",
    layout: Layout = "nchw",
    dynamic_batch: DynamicBatch = False,
    max_batch: MaxBatch = MAX_BATCH,
    portable: Portable = False,
    device: TargetDevice = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one file."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.sources import ModelChoice
    from edgefold.device_bench.runners import open_runner
    from edgefold.pipeline import as_output, check_free
    from edgefold.report.table import size
    from edgefold.schemes import check_format

    with output(as_json) as out:
        scheme = check_format(format, precision)
        refuse_unused([precision], qat=qat, observer=observer, equalize=equalize, exclude=exclude)
        choice = ModelChoice(model, arg, weights, trust, preprocess, qat)
        named = Path(f"{choice.short_name}-{precision}{format.suffix}") if out_file is None else out_file
        target = as_output(named, format)
        most_bytes = byte_count(max_size)
        check_free(target, force=force)  # before the seconds that it takes to load what follows
        if device is not None:
            open_runner(device)  # contacts nothing

        from edgefold.pipeline import export_with_plan
        from edgefold.pipeline import fold as fold_model
        from edgefold.results import to_dict
        from edgefold.trained import quantize_network

        with progress(f"exporting {model} to {format}"):
            network = choice.load(calibration)
            source: nn.Module | QuantizedProgram = network.module
            if scheme.rounded:
                source = quantize_network(
                    network,
                    fold_model(network.module, network.example_inputs),
                    network.calibration_for(precision),
                    precision,
                    observer=observer,
                    equalize=equalize,
                    exclude=exclude or (),
                    pixels=network.preprocessing if io == "uint8" else None,
                )
            written = export_with_plan(
                source,
                network.example_inputs,
                format=format,
                precision=None if scheme.rounded else precision,
                lowering=lowering or "auto",
                agree=agree,
                io=io,
                layout=layout,
                dynamic_batch=dynamic_batch,
                portable=portable,
                device=device,
                max_batch=max_batch,
                timing=timing,
                max_size=most_bytes,
                out=target,
                force=force,
            )
        artifact, plan = written.artifact, written.plan
        lines = (*(_end("input", spec) for spec in artifact.inputs), *(_end("output", spec) for spec in artifact.outputs))
        out.show(
            {**to_dict(artifact), "lowering": plan, "note": scheme.note},
            lambda: [
                f"{artifact.path}: {size(artifact.size_bytes)}",
                *lines,
                *_lowered(plan),
                *_noted(scheme.note),
                *_limits(artifact),
            ],
        )


def _folded(plan: FoldPlan) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.plan_pictures import count, totals

    def kernels(layer: object) -> str:
        found = getattr(layer, "kernel_map", None)
        return "" if found is None else f"{count(found.full)} / {count(found.centre)} / {count(found.zero)}"

    yield table(
        ("layer", "kind", "geometry", "whole / 1×1 / zero", "nodes", "multiply-adds", "error", "stays because"),
        [
            (
                layer.name,
                layer.kind,
                layer.geometry,
                kernels(layer),
                f"{count(layer.ops_before)} → 1" if layer.folded else "",
                f"{count(layer.macs_before)} → {count(layer.macs)}" if layer.folded else "",
                f"{layer.max_relative_error:.0e}" if layer.folded else "",
                layer.reason,
            )
            for layer in plan.layers
        ],
        "lwlrrrrw",
    )
    for bar in totals(plan):
        yield f"{bar.name}: {bar.before} as written, {bar.after} folded"


def _lowered(plan: LoweringPlan) -> Iterable[RenderableType]:
    from edgefold.report.plan_pictures import choice_summary, closing_text

    yield f"lowering: {choice_summary(plan.layers) or 'no convolution'}; {plan.gathers} explicit reorderings of channels"
    closing = closing_text(plan)
    if closing:
        yield closing


def _noted(note: str) -> Iterable[str]:
    """What a user should know of a precision."""
    return [f"Note: {note}"] if note else []


def _limits(artifact: Artifact) -> Iterable[RenderableType]:
    from edgefold.runtime.worker_x86 import is_for_vnni

    if is_for_vnni(artifact.path):
        yield (
            "exact on ARM and on x86 CPUs with VNNI; on others set ONNX Runtime's session option session.x64quantprecision to 1, "
            "or export with --portable"
        )


def _end(kind: str, spec: TensorSpec) -> str:
    quantized = "" if spec.scale is None else f", scale {spec.scale:.6g}, zero point {spec.zero_point}"
    return f"{kind} {spec.name}: {spec.shape_text} {spec.dtype}, {spec.layout}{quantized}"
