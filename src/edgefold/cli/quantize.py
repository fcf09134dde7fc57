"""`edgefold quantize`: what INT8 costs in accuracy, in which layer, and whether it saves time here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgefold.artifact import Format, Precision
from edgefold.cli.options import (
    Agree,
    Arg,
    Calibration,
    Device,
    Equalize,
    Evaluation,
    Exclude,
    Formats,
    Json,
    MaxDrop,
    MaxMs,
    MaxSecs,
    Model,
    Observer,
    Preprocess,
    Qat,
    Trust,
    Weights,
)
from edgefold.errors import UsageError
from edgefold.schemes import DEFAULT_EXPONENT_BITS, scheme_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.cli.powers import PowerComparison
    from edgefold.cli.sources import ModelChoice
    from edgefold.export.program import Program, QuantizedProgram
    from edgefold.mixing import Budget, Mixture
    from edgefold.network import Network
    from edgefold.quantize.correct import EqualizedPair
    from edgefold.quantize.sensitivity_data import Sensitivity
    from edgefold.report.explanation import Explanation


# Those whose weights are other numbers than those of the float network: there is nothing to explain of the others.
RoundedScheme = Literal["int8", "int8-full", "int8-dynamic", "int8-weight-only", "int16x8", "log2"]


@dataclass(frozen=True)
class Quantization:
    """What quantization does to a network in torch, before any export."""

    scheme: Precision
    samples: int  # of the calibration
    sensitivity: Sensitivity
    explanation: Explanation
    evaluated: int = 0
    top1: float | None = None
    top1_reference: float | None = None
    findings: tuple[str, ...] = ()  # on the calibration data
    equalized: tuple[EqualizedPair, ...] = ()
    mixture: Mixture | None = None
    note: str = ""  # on the scheme


def quantize(
    model: Model,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    scheme: Annotated[RoundedScheme, typer.Option("--scheme", help="The integer scheme.")] = "int8",
    qat: Qat = None,
    preprocess: Preprocess = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    observer: Observer = "auto",
    equalize: Equalize = False,
    exclude: Exclude = None,
    max_drop: MaxDrop = None,
    max_ms: MaxMs = None,
    exponent_bits: Annotated[
        int | None,
        typer.Option(
            "--exponent-bits",
            min=1,
            max=8,
            help="Bits of the exponents of log2 weights.",
            show_default=str(DEFAULT_EXPONENT_BITS),
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also write the files and measure them: does INT8 save time, and why?")
    ] = False,
    agree: Agree = False,
    formats: Formats = None,
    device: Device = "host",
    max_secs: MaxSecs = 10.0,
    as_json: Json = False,
) -> None:
    """Show what quantization costs, layer by layer, and what it saves.

    One calibration is for all formats. With --explain the files are written and timed as well.
    """
    from edgefold.cli.output import output, progress

    with output(as_json) as out:
        from edgefold.cli.powers import compared, refuse
        from edgefold.cli.sources import ModelChoice
        from edgefold.device_bench.runners import open_runner
        from edgefold.mixing import Budget

        without_files = {
            "--explain": explain,
            "--agree": agree,
            "--max-drop": max_drop is not None,
            "--max-ms": max_ms is not None,
            "--format": bool(formats),
        }
        precision = Precision(scheme)
        refuse(without_files, exponent_bits, precision)
        if not (explain or max_drop is not None or max_ms is not None):
            _refuse_unused({"--agree": agree, "--format": bool(formats), "--device": device != "host"})
        open_runner(device)  # contacts nothing
        with progress(f"quantizing {model}") as say:
            work = _Work(ModelChoice(model, arg, weights, trust, preprocess, qat), precision, calibration, evaluation, say)
            if precision is Precision.LOG2:
                powers = work.compare_powers(observer, exclude or [], exponent_bits or DEFAULT_EXPONENT_BITS, equalize=equalize)
                out.show({"schema": "edgefold.PowerComparison/1", **vars(powers)}, lambda: compared(powers))
                return
            wanted = tuple(formats or scheme_of(precision).formats)
            budget = Budget(max_drop, max_ms, wanted, device, agree=agree)
            found = work.quantize(observer, budget, exclude or [], equalize=equalize)
            if explain:
                found = replace(found, explanation=work.explain(found, wanted, device, max_secs, agree=agree))
        out.show({"schema": "edgefold.Quantization/1", **vars(found)}, lambda: _quantized(found))


def _refuse_unused(given: Mapping[str, bool]) -> None:
    for name in (name for name, there in given.items() if there):
        raise UsageError(f"{name} is for the files of --explain, --max-drop and --max-ms; give one of these, or leave it out")


class _Work:
    """One network on its way: loaded and folded once."""

    def __init__(
        self, choice: ModelChoice, scheme: Precision, calibration: str | None, evaluation: str | None, say: Callable[[str], None]
    ) -> None:
        from edgefold.calibrated import calibration_record
        from edgefold.pipeline import fold
        from edgefold.variants import calibration_samples

        self._say = say
        self.scheme = scheme
        self.network: Network = choice.load(calibration, evaluation)
        self.folded = fold(self.network.module, self.network.example_inputs)
        self.samples = calibration_samples(self.network, self.folded, (scheme,))
        self.calibrated = scheme_of(scheme).calibrated
        record = calibration_record(self.network, self.samples) if self.calibrated else None
        self.findings = () if record is None else record.findings
        self.program: QuantizedProgram | None = None

    def quantize(self, observer: str, budget: Budget, exclude: list[str], *, equalize: bool) -> Quantization:
        """Calibrates, and looks for what is lost."""
        from edgefold.device_bench.runners import open_runner
        from edgefold.explaining import explain_accuracy
        from edgefold.mixing import mix
        from edgefold.trained import quantize_network

        self._say(f"calibrating with {len(self.samples)} samples" if self.calibrated else "rounding the weights")
        program = quantize_network(
            self.network,
            self.folded,
            self.samples if self.calibrated else None,
            self.scheme,
            observer=observer,
            equalize=equalize,
            exclude=exclude,
        )
        mixture = None
        if budget.given:
            self._say("looking for the layers that must stay in float")
            program, mixture = mix(program, self.network, self.samples, budget)
        self.program = program
        self._say("looking for the layers that lose most")
        with open_runner("host") as runner:
            explanation = explain_accuracy(program, self.samples, runner.info())
        found = Quantization(
            self.scheme,
            len(self.samples),
            explanation.sensitivity,
            explanation,
            findings=(*self.findings, *program.findings),
            equalized=program.equalized,
            mixture=mixture,
            note=scheme_of(self.scheme).note,
        )
        evaluation = self.network.evaluation
        if evaluation is None:
            return found
        self._say(f"evaluating on {evaluation.data}")
        top1 = [self._top1(net) for net in (program, self.folded.program)]
        return replace(found, evaluated=len(evaluation.labels), top1=top1[0], top1_reference=top1[1])

    def compare_powers(self, observer: str, exclude: list[str], exponent_bits: int, *, equalize: bool) -> PowerComparison:
        """Compares weights that are powers of two with int8 ones."""
        from edgefold.cli.powers import compare_powers

        found = compare_powers(
            self.network,
            self.folded,
            self.samples,
            observer=observer,
            equalize=equalize,
            exclude=exclude,
            exponent_bits=exponent_bits,
            say=self._say,
        )
        return replace(found, findings=self.findings)

    def explain(
        self, found: Quantization, formats: tuple[Format, ...], device: str, max_secs: float, *, agree: bool
    ) -> Explanation:
        """Writes and measures the files of each format."""
        from edgefold.device_bench import BenchOptions
        from edgefold.device_bench.outlook import int8_outlook
        from edgefold.device_bench.runners import open_runner
        from edgefold.explaining import measure_outlook
        from edgefold.export.lower.agree import agree as agree_formats

        assert self.program is not None
        with open_runner(device) as runner:
            info = runner.info()
        options = BenchOptions(processes=3, min_time_s=0.2, max_secs=max_secs)
        program = self.program
        choices = agree_formats(program.program, formats=formats, precision=self.scheme, device=device) if agree else {}
        outlooks = [
            measure_outlook(form, self.folded.program, program, device, options, choices=choices.get(form), progress=self._say)
            for form in formats
        ]
        pays, reason = int8_outlook(info.machine, frozenset(info.features))
        return replace(found.explanation, runtimes=tuple(outlooks), cpu=info.cpu, cpu_pays=pays, cpu_reason=reason)

    def _top1(self, net: QuantizedProgram | Program) -> float:
        from edgefold.export.program import QuantizedProgram
        from edgefold.export.verify import reference_outputs, top1

        assert self.network.evaluation is not None
        batch = len(self.folded.program.example_inputs[0])
        source = net if isinstance(net, QuantizedProgram) else net.graph
        return top1(reference_outputs(source, self.network.evaluation.inputs, batch=batch)[0], self.network.evaluation.labels)


def _quantized(found: Quantization) -> Iterable[RenderableType]:
    from edgefold.cli.explain import explained
    from edgefold.report.table import percent

    yield from explained(found.explanation)
    yield from (f"Note: {text}" for text in (*found.findings, found.note) if text)
    if found.equalized:
        done = [f"{pair.first} → {pair.second}" for pair in found.equalized if not pair.reason]
        yield f"Equalized: {', '.join(done) or 'no pair of layers'}"
        yield from (f"Not equalized: {pair.first} → {pair.second}: {pair.reason}" for pair in found.equalized if pair.reason)
    if found.mixture is not None:
        yield from _mixed(found.mixture)
    if found.top1 is not None and found.top1_reference is not None:
        yield f"top-1 on {found.evaluated:,} images: {percent(found.top1)}, float network {percent(found.top1_reference)}"


def _mixed(mixture: Mixture) -> Iterable[str]:
    from edgefold.report.table import percent

    floats = ", ".join(mixture.float_layers) or "no layer"
    yield (
        f"In float: {floats}; the metric is {percent(mixture.after)} ({percent(mixture.before)} with every layer in integers, "
        f"{percent(mixture.reference)} in float)"
    )
    if mixture.median_ms:
        yield "Measured: " + ", ".join(f"{name} {value:.3g} ms" for name, value in mixture.median_ms.items())
