"""`edgefold verify`: does an artifact compute what the network does?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgefold.cli.options import (
    Arg,
    Artifacts,
    Calibration,
    Equalize,
    Evaluation,
    Exclude,
    Json,
    Observer,
    Preprocess,
    Qat,
    Target,
    Trust,
    Weights,
    refuse_unused,
)
from edgefold.errors import DataError, UsageError

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
    "a file alone does not say how it was calibrated, so it is compared with a calibration {options}; made with other samples, "
    "--exclude, --observer or --equalize it holds other numbers: give those that it was made with, or verify its bundle, which "
    "records them"
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
    observer: Observer = "auto",
    equalize: Equalize = False,
    exclude: Exclude = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also map where the runtimes' integer results differ, layer by layer, and why.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare files, run in their real runtimes, with torch."""
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
            options = _Options(observer, equalize, tuple(exclude or ()))
            if manifest is not None and options != _Options():
                raise UsageError(
                    f"bundle '{target}' records how it was quantized; leave --observer, --equalize and --exclude out, "
                    "or give one of its files"
                )
            refuse_unused(
                [found.precision for found in artifacts.values()], qat=None, observer=observer, equalize=equalize, exclude=exclude
            )
            bundled = None if manifest is None else manifest.preprocessing
            network = ModelChoice(model, arg, weights, trust, preprocess, qat).load(calibration, evaluation, bundled)
            check = _Verifier(network, manifest, options)
            for name, found in artifacts.items():
                say(f"verifying {name}")
                reports[name] = check(found)
            for precision, formats in wanted.items():
                say(f"looking for drift between {', '.join(formats)}")
                first = next(found for found in artifacts.values() if found.precision is precision)
                program = check.program(first, target.name)
                maps[precision] = measure(program, check.inputs, formats, recorded_plans(manifest, precision))
        results = list(reports.values())
        parity: Any = results if is_bundle(target) else results[0]
        told = {"schema": "edgefold.Verification/1", "parity": parity, "drift": dict(maps)} if drift else parity
        out.show(told, lambda: (*_verified(reports), *_noted(reports), *_drifted(maps)))
    raise typer.Exit(0 if all(report.passed for report in results) else 1)


@dataclass(frozen=True, slots=True)
class _Options:
    """How a network is quantized."""

    observer: str = "auto"
    equalize: bool = False
    exclude: tuple[str, ...] = ()


class _Verifier:
    """Compares artifacts with one network; the network is quantized at most once for each precision and type of ends.

    It is quantized as the manifest of the artifacts' bundle says, or with the options given.
    """

    def __init__(self, network: Network, manifest: Manifest | None, options: _Options) -> None:
        self._network = network
        self._recorded_calibration = None if manifest is None else manifest.calibration
        self._recorded = {} if manifest is None else {scales.scheme: scales for scales in manifest.scales}
        self._options = options
        self._programs: dict[tuple[Precision, Preprocessing | None, str], QuantizedProgram] = {}

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

    def program(self, artifact: Artifact, name: str) -> QuantizedProgram:
        """The network quantized as an artifact was; ``name`` stands for it in messages."""
        from edgefold.pipeline import fold
        from edgefold.schemes import scheme_of
        from edgefold.trained import quantize_network

        precision = artifact.precision
        calibrated = scheme_of(precision).calibrated
        if calibrated and self._network.calibration is None and self._network.trained is None:
            raise DataError(
                f"'{name}' is {precision} and model '{self._network.name}' brings no calibration data; "
                "give the --calibration that it was made with"
            )
        pixels, io = _pixels(artifact.inputs[0]), _io(artifact)
        key = precision, pixels, io
        if key not in self._programs:
            scales = None if self._network.trained else self._recorded.get(precision)
            options = self._options
            if scales is not None:
                options = _Options(scales.observer, bool(scales.equalized), scales.float_layers)
            self._programs[key] = quantize_network(
                self._network,
                fold(self._network.module, self._network.example_inputs),
                self._network.calibration_for(precision),
                precision,
                observer=options.observer,
                equalize=options.equalize,
                exclude=options.exclude,
                pixels=pixels,
                io=io,
            )
        return self._programs[key]

    def _reference(self, artifact: Artifact) -> nn.Module | QuantizedProgram:
        from edgefold.schemes import scheme_of

        if not scheme_of(artifact.precision).rounded:
            return self._network.module
        return self.program(artifact, artifact.path.name)

    def _calibration_notes(self, artifact: Artifact) -> tuple[str, ...]:
        """What is to be known of an artifact's scales: the bundle's own findings, whether the data at hand is other data, and
        which values lose their steps."""
        from edgefold.calibrated import calibration_difference, calibration_notes, join_notes
        from edgefold.schemes import scheme_of

        if not scheme_of(artifact.precision).calibrated:
            return ()
        recorded, found = self._recorded_calibration, self._calibration
        difference = calibration_difference(found, recorded)
        assumed: tuple[str, ...] = ()
        if not self._network.trained and artifact.precision not in self._recorded:
            assumed = (_ASSUMED.format(options=_told(self._options)),)
        joins = join_notes({artifact.precision: self.program(artifact, artifact.path.name)})
        return (*calibration_notes(recorded or found), *((difference,) if difference else ()), *assumed, *joins)

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


def _told(options: _Options) -> str:
    """The options of a calibration in words."""
    given = (
        *((f"--observer {options.observer}",) if options.observer != "auto" else ()),
        *(("--equalize",) if options.equalize else ()),
        *(f"--exclude {layer}" for layer in options.exclude),
    )
    return f"with {' '.join(given)}" if given else "of default options"


def _io(artifact: Artifact) -> Literal["float32", "int8", "uint8"]:
    """The type of an artifact's quantized ends."""
    found = {spec.dtype for spec in (*artifact.inputs, *artifact.outputs) if spec.scale is not None}
    return "uint8" if "uint8" in found else "int8" if "int8" in found else "float32"


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
