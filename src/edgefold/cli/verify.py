"""`edgefold verify`: does an artifact compute what the network does?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefold.cli.options import Arg, Artifacts, Calibration, Evaluation, Json, Preprocess, Qat, Target, Trust, Weights
from edgefold.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from edgefold.artifact import Artifact, Precision, TensorSpec
    from edgefold.batch import Batch
    from edgefold.bundle.manifest import Calibration as Recorded
    from edgefold.bundle.manifest import Manifest
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.preprocess import Preprocessing
    from edgefold.quantize.drift import DriftReport
    from edgefold.results import ParityReport

_SAMPLES = 32
_ASSUMED = (
    "a file alone does not say how it was calibrated, so it is compared with a calibration of default options; "
    "made with other samples, --exclude, --observer or --equalize it holds other numbers: verify its bundle, which records them"
)


def verify(
    target: Target,
    model: Annotated[str, typer.Argument(help="The model that it was made from.", show_default=False)],
    artifact: Artifacts = None,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    qat: Qat = None,
    preprocess: Preprocess = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also map where the runtimes' integer results differ, layer by layer, and why.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare artifacts, run in their real runtimes, with the model in torch."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifacts_of, is_bundle, manifest_of

    with output(as_json) as out:
        reports: dict[str, ParityReport] = {}
        maps: dict[Precision, DriftReport] = {}
        with artifacts_of(target, artifact) as artifacts, progress(f"loading {model}") as say:
            from edgefold.cli.drift import integer_formats, measure, recorded_plans
            from edgefold.cli.sources import ModelChoice

            wanted = integer_formats(artifacts) if drift else {}
            manifest = manifest_of(target)
            bundled = None if manifest is None else manifest.preprocessing
            network = ModelChoice(model, arg, weights, trust, preprocess, qat).load(calibration, evaluation, bundled)
            check = _Verifier(network, manifest)
            for name, found in artifacts.items():
                say(f"verifying {name}")
                reports[name] = check(found)
            for precision, formats in wanted.items():
                say(f"looking for drift between {', '.join(formats)}")
                specs = next(found.inputs for found in artifacts.values() if found.precision is precision)
                program = check.program(precision, specs[0], target.name)
                maps[precision] = measure(program, check.inputs, formats, recorded_plans(manifest, precision))
        results = list(reports.values())
        parity: Any = results if is_bundle(target) else results[0]
        told = {"schema": "edgefold.Verification/1", "parity": parity, "drift": dict(maps)} if drift else parity
        out.show(told, lambda: (*_verified(reports), *_noted(reports), *_drifted(maps)))
    raise typer.Exit(0 if all(report.passed for report in results) else 1)


class _Verifier:
    """Compares artifacts with one network; the network is quantized at most once a precision.

    It is quantized as the manifest of the artifacts' bundle says, or as by default.
    """

    def __init__(self, network: Network, manifest: Manifest | None) -> None:
        self._network = network
        self._recorded_calibration = None if manifest is None else manifest.calibration
        self._recorded = {} if manifest is None else {scales.scheme: scales for scales in manifest.scales}
        self._programs: dict[tuple[Precision, Preprocessing | None], QuantizedProgram] = {}

    def __call__(self, artifact: Artifact) -> ParityReport:
        """The report on one artifact.

        Raises:
            DataError: an integer artifact, and no calibration data.
        """
        from edgefold.export.verify import verify

        evaluation = self._network.evaluation
        labels = None if evaluation is None else evaluation.labels
        report = verify(artifact, self._reference(artifact), self.inputs, labels=labels)
        return replace(report, notes=(*self._network.notes, *self._calibration_notes(artifact)))

    @property
    def inputs(self) -> Batch:
        """What the artifacts are run on: the evaluation data, or else seeded random inputs."""
        return self._seeded() if self._network.evaluation is None else self._network.evaluation.inputs

    def program(self, precision: Precision, first: TensorSpec, name: str) -> QuantizedProgram:
        """The network quantized as the artifacts of a precision were, whose first input is ``first``; ``name`` stands for them in
        messages."""
        from edgefold.pipeline import fold
        from edgefold.schemes import scheme_of
        from edgefold.trained import quantize_network

        calibrated = scheme_of(precision).calibrated
        if calibrated and self._network.calibration is None and self._network.trained is None:
            raise DataError(
                f"'{name}' is {precision} and model '{self._network.name}' brings no calibration data; "
                "give the --calibration that it was made with"
            )
        pixels = _pixels(first)
        key = precision, pixels
        if key not in self._programs:
            recorded = None if self._network.trained else self._recorded.get(precision)
            self._programs[key] = quantize_network(
                self._network,
                fold(self._network.module, self._network.example_inputs),
                self._network.calibration_for(precision),
                precision,
                observer="auto" if recorded is None else recorded.observer,
                equalize=recorded is not None and bool(recorded.equalized),
                exclude=() if recorded is None else recorded.float_layers,
                pixels=pixels,
            )
        return self._programs[key]

    def _reference(self, artifact: Artifact) -> nn.Module | QuantizedProgram:
        from edgefold.schemes import scheme_of

        if not scheme_of(artifact.precision).rounded:
            return self._network.module
        return self.program(artifact.precision, artifact.inputs[0], artifact.path.name)

    def _calibration_notes(self, artifact: Artifact) -> tuple[str, ...]:
        """What is to be known of an artifact's scales: the bundle's own findings, and whether the data at hand is other data."""
        from edgefold.calibrated import calibration_difference, calibration_notes
        from edgefold.schemes import scheme_of

        if not scheme_of(artifact.precision).calibrated:
            return ()
        recorded, found = self._recorded_calibration, self._calibration
        difference = calibration_difference(found, recorded)
        assumed = () if self._network.trained or artifact.precision in self._recorded else (_ASSUMED,)
        return (*calibration_notes(recorded or found), *((difference,) if difference else ()), *assumed)

    @cached_property
    def _calibration(self) -> Recorded | None:
        """The data at hand."""
        from edgefold.batch import as_tensors, samples_like
        from edgefold.calibrated import calibration_record

        data = self._network.calibration
        example = as_tensors(self._network.example_inputs)
        return None if data is None else calibration_record(self._network, list(samples_like(data, example, "calibration")))

    def _seeded(self) -> Any:
        import torch

        from edgefold.batch import as_tensors

        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(_SAMPLES, *tensor.shape[1:], generator=generator)
            if tensor.is_floating_point()
            else tensor[:1].expand(_SAMPLES, *tensor.shape[1:])
            for tensor in as_tensors(self._network.example_inputs)
        )


def _pixels(spec: TensorSpec) -> Preprocessing | None:
    """The preprocessing that is inside a file which takes camera pixels; ``None`` for all others."""
    from edgefold.preprocess import Preprocessing
    from edgefold.runtime.session import torch_shape

    if spec.pixel_mean is None or spec.pixel_std is None:
        return None
    _, channels, height, width = torch_shape(spec)
    return Preprocessing(height, width, spec.pixel_mean, spec.pixel_std, "gray" if channels == 1 else "rgb", divisor=1.0)


def _drifted(maps: dict[Precision, DriftReport]) -> Iterable[RenderableType]:
    from edgefold.cli.drift import drifted

    for precision, report in maps.items():
        yield from drifted(report, precision)


def _noted(reports: dict[str, ParityReport]) -> Iterable[str]:
    """What is to be known of the data, each sentence once."""
    return (f"Note: {note}" for note in dict.fromkeys(note for report in reports.values() for note in report.notes))


def _batches(report: ParityReport) -> str:
    return f" (batch {' and '.join(map(str, report.batches))})" if report.batches else ""


def _verified(reports: dict[str, ParityReport]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import parity_text, percent, same_top1

    yield table(
        ("artifact", "against", "parity", "samples", "top-1", "reference top-1", "same top-1", "criterion", "check"),
        [
            (
                name,
                report.reference,
                parity_text(report),
                f"{report.samples}{_batches(report)}",
                *("" if share is None else percent(share) for share in (report.top1, report.top1_reference)),
                same_top1(report.top1_agreement, report.top1_clear, report.top1_close),
                report.criterion,
                "ok" if report.passed else "FAILED",
            )
            for name, report in reports.items()
        ],
        "llrrrrrwl",
    )
