"""The variants of a network, stage by stage: each stage adds to every variant what it found, or the reason why it could not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import Format, Precision
from edgefold.errors import EdgefoldError
from edgefold.network import Network, Progress, ShipOptions
from edgefold.report.content import Accuracy, Failure, Variant
from edgefold.schemes import combinations, scheme_of

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.export.emitters.base import EmitOptions
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Arrays, Metric
    from edgefold.report.explanation import Explanation
    from edgefold.results import RuntimeAgreement

EXPLAINED_SAMPLES = 8


def quantize_all(
    network: Network, folded: FoldResult, options: ShipOptions, progress: Progress
) -> tuple[dict[Precision, QuantizedProgram], list[tuple[Tensor, ...]]]:
    """One program a scheme, all from the same samples, and those samples."""
    from edgefold.mixing import Budget, mix
    from edgefold.trained import quantize_network

    schemes = [precision for precision in options.precisions if scheme_of(precision).rounded]
    if not schemes:
        return {}, []
    samples = calibration_samples(network, folded, schemes)
    programs = {}
    for scheme in schemes:
        calibrated = scheme_of(scheme).calibrated
        progress.stage("calibrate", len(samples))
        programs[scheme] = quantize_network(
            network,
            folded,
            samples if calibrated else None,
            scheme,
            observer=options.observer if calibrated else "auto",
            equalize=options.equalize,
            exclude=options.exclude,
            pixels=network.preprocessing if options.io == "uint8" and scheme_of(scheme).integer_ends else None,
            io=options.io,
            progress=progress.step,
        )
        budget = Budget(
            options.mixed_drop,
            options.max_ms,
            _held(scheme, options),
            options.device,
            lowering=options.lowering,
            bench=options.bench,
            agree=options.agree and calibrated,
            ends=lambda program: _ends(program, options),
        )
        if budget.given:
            progress.stage("mix")
            programs[scheme], _ = mix(programs[scheme], network, samples, budget, progress=progress.step)
    return programs, samples


def _held(precision: Precision, options: ShipOptions) -> tuple[Format, ...]:
    """The formats that are wanted and have a form for a precision."""
    return tuple(format for format in options.formats if format in scheme_of(precision).formats)


def calibration_samples(network: Network, folded: FoldResult, schemes: Sequence[Precision]) -> list[tuple[Tensor, ...]]:
    """What to calibrate with, and to judge by: the network's own data; seeded random numbers where no scheme needs any.

    Raises:
        DataError: there is no data, and a scheme needs some.
    """
    from edgefold.batch import samples_like

    example = folded.program.example_inputs
    data = network.calibration
    if data is None:
        for scheme in schemes:
            network.calibration_for(scheme)
        data = [seeded_inputs(example, EXPLAINED_SAMPLES)]
    return list(samples_like(data, example, "calibration"))


def emit_all(
    folded: FoldResult, quantized: dict[Precision, QuantizedProgram], options: ShipOptions, folder: Path, progress: Progress
) -> list[Variant]:
    """Lower and write every variant into ``folder``, each in the form that is the fastest as a whole."""
    from edgefold.device_bench.closing import Request, emit_fastest
    from edgefold.device_bench.race import RaceOptions
    from edgefold.export.lower.agree import agree

    runs = RaceOptions() if options.bench is None else RaceOptions(threads=options.bench.threads, cores=options.bench.cores)
    wanted = combinations(options.formats, options.precisions)
    progress.stage("export", len(wanted))
    agreed = {
        precision: agree(
            each.program, formats=_held(precision, options), precision=precision, lowering=options.lowering, device=options.device
        )
        for precision, each in quantized.items()
        if options.agree and scheme_of(precision).calibrated
    }
    variants = []
    for format, precision in wanted:
        variant = Variant(f"{format}-{precision}", format, precision)
        request = Request(
            format,
            precision,
            options.lowering,
            options.device,
            timing=options.timing,
            max_size_bytes=options.max_size_bytes,
            race=runs,
            choices=agreed[precision][format] if precision in agreed else None,
            native=options.native,
        )
        try:
            program = quantized[precision].program if precision in quantized else folded.program
            out = folder / f"{variant.name}{format.suffix}"
            written = emit_fastest(program, request, _ends(quantized.get(precision), options), out, lambda: None)
            variant = replace(variant, lowering=written.plan, artifact=written.artifact)
        except EdgefoldError as error:
            variant = replace(variant, failure=_failure("emit", error))
        variants.append(variant)
        progress.step()
    return variants


def _ends(program: QuantizedProgram | None, options: ShipOptions) -> EmitOptions:
    """What the ends of a file look like; only files whose activations have 8 bits have integer ends."""
    from edgefold.export.emitters.base import EmitOptions

    if program is None or not scheme_of(program.scheme).integer_ends:
        marked = options.random_calibration and program is not None and scheme_of(program.scheme).calibrated
        return EmitOptions(
            layout=options.layout,
            dynamic_batch=options.dynamic_batch,
            max_batch=options.max_batch,
            random_calibration=marked,
        )
    return EmitOptions(
        io=options.io,
        layout=options.layout,
        pixels=program.pixels,
        dynamic_batch=options.dynamic_batch,
        max_batch=options.max_batch,
        portable=options.portable,
        random_calibration=options.random_calibration,
    )


def verify_all(
    variants: Sequence[Variant],
    network: Network,
    folded: FoldResult,
    quantized: dict[Precision, QuantizedProgram],
    options: ShipOptions,
    progress: Progress,
) -> tuple[list[Variant], tuple[RuntimeAgreement, ...], Verified]:
    """Run every artifact on the evaluation inputs and compare it with torch, and the runtimes with each other."""
    from edgefold.export.verify import compare, reference_outputs, with_other_batch, with_own_error
    from edgefold.runtime import run

    evaluation = network.evaluation
    inputs = evaluation.inputs if evaluation else seeded_inputs(folded.program.example_inputs, options.parity_samples)
    few = tuple(tensor[: options.parity_samples] for tensor in inputs)
    progress.stage("verify", len(variants))
    # A batch of the example's size: the graph's shapes are fixed.
    size = len(folded.program.example_inputs[0])
    exact = reference_outputs(folded.program.graph, inputs, batch=size)
    references = {precision: reference_outputs(program, few, batch=size) for precision, program in quantized.items()}
    checked: list[Variant] = []
    outputs: dict[str, Arrays] = {}
    for variant in variants:
        if variant.artifact is not None:
            try:
                found = run(variant.artifact, [tensor.numpy() for tensor in inputs], batch=1)
                outputs[variant.name] = found
                program = quantized.get(variant.precision)
                reference = references.get(variant.precision) or tuple(array[: len(few[0])] for array in exact)
                parity = compare(
                    variant.artifact,
                    program or network.module,
                    tuple(array[: len(few[0])] for array in found),
                    reference,
                )
                arrays = tuple(tensor.numpy() for tensor in few)
                parity = with_other_batch(parity, variant.artifact, program or network.module, arrays, reference)
                parity = with_own_error(parity, program or folded.program.graph, few, reference, batch=size)
                variant = replace(variant, parity=parity, accuracy=_accuracy(found, exact, network, options.max_drop))
            except EdgefoldError as error:
                variant = replace(variant, failure=_failure("verify", error))
        checked.append(variant)
        progress.step()
    if options.dynamic_batch:
        size = 1
    first = Verified(
        tuple(tensor[:size].numpy() for tensor in inputs),
        {name: tuple(array[:size] for array in found) for name, found in outputs.items()},
    )
    return checked, _agreements(checked, outputs, quantized), first


@dataclass(frozen=True, slots=True)
class Verified:
    """One batch of inputs, and what each artifact made of it when it was verified, in torch's layout."""

    inputs: Arrays
    outputs: Mapping[str, Arrays]


def _agreements(
    variants: Sequence[Variant], outputs: dict[str, Arrays], quantized: dict[Precision, QuantizedProgram]
) -> tuple[RuntimeAgreement, ...]:
    """Every pair of runtimes, for each precision whose outputs lie on a grid of integers."""
    from edgefold.export.verify import agreement, output_steps

    found = []
    for precision, program in quantized.items():
        if not scheme_of(precision).calibrated:
            continue
        names = [variant.name for variant in variants if variant.precision is precision and variant.name in outputs]
        for position, first in enumerate(names):
            for second in names[position + 1 :]:
                found.append(agreement(first, second, outputs[first], outputs[second], output_steps(program)))
    return tuple(found)


def _accuracy(outputs: Arrays, exact: Arrays, network: Network, max_drop: float) -> Accuracy | None:
    from edgefold.export.verify import top1

    evaluation = network.evaluation
    if evaluation is None:
        return None
    metric: Metric = network.metric or (lambda arrays, labels: top1(arrays[0], labels))
    value, reference = metric(outputs, evaluation.labels), metric(exact, evaluation.labels)
    return Accuracy(
        metric=getattr(network.metric, "__name__", "metric") if network.metric else "top-1",
        value=value,
        reference=reference,
        samples=len(evaluation.labels),
        data=evaluation.data,
        passed=bool(value >= reference - max_drop / 100 - 1e-9),
        criterion=f"within {max_drop:g} points of the float network",
    )


def measure_all(variants: Sequence[Variant], verified: Verified, options: ShipOptions, progress: Progress) -> list[Variant]:
    """Measure every artifact that is there; on the device it must compute what it did when it was verified."""
    from edgefold.device_bench import BenchOptions, bench

    bench_options = options.bench or BenchOptions()
    made = [variant for variant in variants if variant.artifact is not None and variant.failure is None]
    progress.stage("measure", len(made) * (bench_options.processes + 1))
    measured = []
    for variant in variants:
        if variant in made and variant.artifact is not None:
            try:
                measurement = bench(
                    variant.artifact,
                    options.device,
                    options=bench_options,
                    inputs=verified.inputs,
                    # A fake device computes nothing.
                    reference=None if options.device == "fake" else verified.outputs[variant.name],
                    progress=progress.step,
                )
                variant = replace(variant, measurement=measurement)
            except EdgefoldError as error:
                variant = replace(variant, failure=_failure("bench", error))
        measured.append(variant)
    return measured


def explain_all(
    variants: Sequence[Variant],
    quantized: dict[Precision, QuantizedProgram],
    samples: Sequence[tuple[Tensor, ...]],
    options: ShipOptions,
    progress: Progress,
) -> tuple[Explanation, ...]:
    """Which layers lose accuracy in each integer scheme, and whether it saves time on the device."""
    if not options.explain or not quantized:
        return ()
    from edgefold.device_bench.runners import open_runner
    from edgefold.explaining import explain_accuracy, outlooks

    measured = next((variant.measurement for variant in variants if variant.measurement is not None), None)
    if measured is not None:
        device = measured.device
    else:
        with open_runner("host") as runner:
            device = runner.info()
    found = []
    for scheme, program in quantized.items():
        progress.stage("explain", len(program.table.weights))
        judged = samples[:EXPLAINED_SAMPLES]
        found.append(explain_accuracy(program, judged, device, outlooks(variants, scheme), progress=progress.step))
    return tuple(found)


def _failure(stage: str, error: EdgefoldError) -> Failure:
    return Failure(stage, type(error).__name__, str(error))


def seeded_inputs(example: tuple[Tensor, ...], samples: int) -> tuple[Tensor, ...]:
    """Standard normal inputs of the example's shapes, always the same ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    count = max(1, samples // len(example[0])) * len(example[0])
    return tuple(
        torch.randn(count, *tensor.shape[1:], generator=generator)
        if tensor.is_floating_point()
        else tensor.repeat(count, *[1] * (tensor.ndim - 1))
        for tensor in example
    )
