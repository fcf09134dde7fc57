"""`edgefold export`: one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import MAX_BATCH, Precision
from edgefold.cli.options import (
    Agree,
    Arg,
    Calibration,
    DynamicBatch,
    Equalize,
    Exclude,
    Force,
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
    Preprocess,
    Qat,
    TargetDevice,
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
    from torch import nn

    from edgefold.artifact import Artifact, TensorSpec
    from edgefold.export.plan import LoweringPlan
    from edgefold.export.program import QuantizedProgram


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
        refuse_unused([precision], qat=qat, observer=observer, equalize=equalize, exclude=exclude, portable=portable)
        refuse_limit_without_batch(max_batch, dynamic_batch=dynamic_batch)
        if calibration is not None and not scheme.calibrated:
            raise UsageError(
                f"precision '{precision}' takes no calibration data; leave --calibration out or give --precision int8"
            )
        choice = ModelChoice(model, arg, weights, trust, preprocess, qat)
        named = Path(f"{choice.short_name}-{precision}{format.suffix}") if out_file is None else out_file
        target = as_output(named, format)
        most_bytes = byte_count(max_size)
        check_free(target, force=force)  # before the seconds that it takes to load what follows
        if device is not None:
            open_runner(device)  # contacts nothing

        from edgefold.calibrated import calibration_record
        from edgefold.pipeline import export_with_plan
        from edgefold.pipeline import fold as fold_model
        from edgefold.results import to_dict
        from edgefold.trained import quantize_network
        from edgefold.variants import calibration_samples

        record = None
        findings: tuple[str, ...] = ()
        with progress(f"exporting {model} to {format}"):
            network = choice.load(calibration)
            source: nn.Module | QuantizedProgram = network.module
            if scheme.rounded:
                folded = fold_model(network.module, network.example_inputs)
                samples = calibration_samples(network, folded, (precision,)) if scheme.calibrated else None
                record = None if samples is None else calibration_record(network, samples)
                source = quantize_network(
                    network,
                    folded,
                    samples,
                    precision,
                    observer=observer,
                    equalize=equalize,
                    exclude=exclude or (),
                    pixels=network.preprocessing if io == "uint8" else None,
                    io=io,
                )
                findings = source.findings
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
                random_calibration=record is not None and record.random,
                out=target,
                force=force,
            )
        artifact, plan = written.artifact, written.plan
        lines = (*(_end("input", spec) for spec in artifact.inputs), *(_end("output", spec) for spec in artifact.outputs))
        out.show(
            {
                **to_dict(artifact),
                "lowering": plan,
                "note": scheme.note,
                "calibration": record and record.model_dump(mode="json"),
                "findings": findings,
            },
            lambda: [
                f"{artifact.path}: {size(artifact.size_bytes)}",
                *lines,
                *_lowered(plan),
                *_noted(scheme.note, *(() if record is None else record.findings), *findings),
                *_limits(artifact),
            ],
        )


def _lowered(plan: LoweringPlan) -> Iterable[RenderableType]:
    from edgefold.report.plan_pictures import choice_summary, closing_text

    yield f"lowering: {choice_summary(plan.layers) or 'no convolution'}; {plan.gathers} explicit reorderings of channels"
    closing = closing_text(plan)
    if closing:
        yield closing


def _noted(*notes: str) -> Iterable[str]:
    """What a user should know of a precision and of the calibration data."""
    return [f"Note: {note}" for note in notes if note]


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
