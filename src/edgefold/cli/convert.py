"""`edgefold fold`, `quantize` and `export`: one stage of the flow at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgefold.artifact import Precision
from edgefold.cli.options import (
    Arg,
    Calibration,
    Evaluation,
    Force,
    Formats,
    Json,
    LoweringChoice,
    MaxSize,
    Model,
    OneFormat,
    OnePrecision,
    Out,
    Precisions,
    Timing,
    Trust,
    Weights,
    byte_count,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import TensorSpec
    from edgefold.cli.sources import ModelChoice
    from edgefold.export.plan import FoldPlan, LoweringPlan
    from edgefold.quantize.sensitivity import Sensitivity

_JUDGED_SAMPLES = 32
_Io = Annotated[
    Literal["float32", "int8", "uint8"], typer.Option("--io", help="Element type of the inputs and outputs of an integer file.")
]
_Layout = Annotated[Literal["nchw", "nhwc"], typer.Option("--layout", help="Order of image inputs and outputs in the file.")]


@dataclass(frozen=True)
class Quantization:
    """What quantization does to a network in torch, before any export. SQNR is over ``samples`` calibration samples."""

    scheme: Precision
    samples: int
    sensitivity: Sensitivity
    evaluated: int = 0
    top1: float | None = None
    top1_reference: float | None = None


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


def quantize(
    model: Model,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    scheme: Annotated[Precision, typer.Option("--scheme", help="The integer scheme.")] = Precision.INT8,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    as_json: Json = False,
) -> None:
    """Calibrate once, and show what quantization costs in which layer."""
    from edgefold.cli.output import output, progress

    with output(as_json) as out:
        from edgefold.cli.sources import ModelChoice

        with progress(f"quantizing {model}") as say:
            found = _quantization(ModelChoice(model, arg, weights, trust), scheme, calibration, evaluation, say)
        out.show({"schema": "edgefold.Quantization/1", **vars(found)}, lambda: _quantized(found))


def export(
    model: Model,
    format: OneFormat,
    precision: OnePrecision = Precision.FP32,
    out_file: Out = None,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    calibration: Calibration = None,
    lowering: LoweringChoice = None,
    timing: Timing = None,
    max_size: MaxSize = None,
    io: _Io = "float32",
    layout: _Layout = "nchw",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one file."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.sources import ModelChoice
    from edgefold.pipeline import as_output, check_free, is_calibrated
    from edgefold.report.table import size

    with output(as_json) as out:
        choice = ModelChoice(model, arg, weights, trust)
        named = Path(f"{choice.short_name}-{precision}{format.suffix}") if out_file is None else out_file
        target = as_output(named, format)
        most_bytes = byte_count(max_size)
        check_free(target, force=force)  # before the seconds that it takes to load what follows

        from edgefold.pipeline import export_with_plan
        from edgefold.results import to_dict

        with progress(f"exporting {model} to {format}"):
            network = choice.load(calibration)
            written = export_with_plan(
                network.module,
                network.example_inputs,
                format=format,
                precision=precision,
                calibration=network.calibration if is_calibrated(precision) else None,
                lowering=lowering.value if lowering is not None else "auto",
                io=io,
                layout=layout,
                timing=timing,
                max_size=most_bytes,
                out=target,
                force=force,
            )
        artifact, plan = written.artifact, written.plan
        lines = (*(_end("input", spec) for spec in artifact.inputs), *(_end("output", spec) for spec in artifact.outputs))
        out.show(
            {**to_dict(artifact), "lowering": plan},
            lambda: [f"{artifact.path}: {size(artifact.size_bytes)}", *lines, *_lowered(plan)],
        )


def _quantization(
    choice: ModelChoice, scheme: Precision, calibration: str | None, evaluation: Path | None, say: Callable[[str], None]
) -> Quantization:
    from edgefold.batch import samples_like
    from edgefold.errors import DataError
    from edgefold.export.verify import reference_outputs, top1
    from edgefold.pipeline import fold as run
    from edgefold.pipeline import quantize_model
    from edgefold.quantize.sensitivity import analyse

    network = choice.load(calibration, evaluation)
    folded = run(network.module, network.example_inputs)
    if network.calibration is None:
        raise DataError(f"model '{choice.name}' brings no calibration data; give --calibration PATH, or 'random' to try it out")
    samples = list(samples_like(network.calibration, folded.program.example_inputs, "calibration"))
    say(f"calibrating with {len(samples)} samples")
    program = quantize_model(folded, network.example_inputs, calibration=samples, scheme=scheme)
    say("looking for the layers that lose most")
    sensitivity = analyse(folded.program.graph, program.table, samples[:_JUDGED_SAMPLES])
    if network.evaluation is None:
        return Quantization(scheme, len(samples), sensitivity)
    inputs, labels = network.evaluation.inputs, network.evaluation.labels
    say(f"evaluating on {network.evaluation.data}")
    batch = len(folded.program.example_inputs[0])
    accuracies = [top1(reference_outputs(net, inputs, batch=batch)[0], labels) for net in (program, folded.program.graph)]
    return Quantization(scheme, len(samples), sensitivity, len(labels), *accuracies)


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


def _quantized(found: Quantization) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import percent

    yield table(
        ("layer", "alone", "up to here", "gain if float", "range", "clipped"),
        [
            (
                layer.name,
                f"{layer.alone_db:.1f} dB",
                f"{layer.cumulative_db:.1f} dB",
                f"{layer.gain_db:+.1f} dB",
                f"{layer.low:.3g} … {layer.high:.3g}",
                f"{layer.clipped_share * 100:.2f} %",
            )
            for layer in found.sensitivity.layers
        ],
        "lrrrrr",
    )
    yield f"{found.scheme} after {found.samples} calibration samples: {found.sensitivity.output_db:.1f} dB at the output"
    if found.top1 is not None and found.top1_reference is not None:
        yield f"top-1 on {found.evaluated:,} images: {percent(found.top1)}, float network {percent(found.top1_reference)}"


def _lowered(plan: LoweringPlan) -> Iterable[RenderableType]:
    from edgefold.report.plan_pictures import choice_summary, closing_text

    yield f"lowering: {choice_summary(plan.layers) or 'no convolution'}; {plan.gathers} explicit reorderings of channels"
    closing = closing_text(plan)
    if closing:
        yield closing


def _end(kind: str, spec: TensorSpec) -> str:
    quantized = "" if spec.scale is None else f", scale {spec.scale:.6g}, zero point {spec.zero_point}"
    return f"{kind} {spec.name}: {'×'.join(map(str, spec.shape))} {spec.dtype}, {spec.layout}{quantized}"
