"""`edgefold verify`: does an artifact compute what the network does?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefold.cli.options import Arg, Artifacts, Calibration, Evaluation, Json, Target, Trust, Weights
from edgefold.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import Artifact
    from edgefold.network import Network
    from edgefold.results import ParityReport

_SAMPLES = 32


def verify(
    target: Target,
    model: Annotated[str, typer.Argument(help="The model that it was made from.", show_default=False)],
    artifact: Artifacts = None,
    arg: Arg = None,
    weights: Weights = None,
    trust: Trust = False,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    as_json: Json = False,
) -> None:
    """Compare artifacts, run in their real runtimes, with the model in torch."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifacts_of, is_bundle

    with output(as_json) as out:
        reports: dict[str, ParityReport] = {}
        with artifacts_of(target, artifact) as artifacts, progress(f"loading {model}") as say:
            from edgefold.cli.sources import ModelChoice

            network = ModelChoice(model, arg, weights, trust).load(calibration, evaluation)
            check = _Verifier(network)
            for name, found in artifacts.items():
                say(f"verifying {name}")
                reports[name] = check(found)
        results = list(reports.values())
        out.show(results if is_bundle(target) else results[0], lambda: _verified(reports))
    raise typer.Exit(0 if all(report.passed for report in results) else 1)


class _Verifier:
    """Compares artifacts with one network; the network is quantized at most once a precision."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._references: dict[str, Any] = {}

    def __call__(self, artifact: Artifact) -> ParityReport:
        """The report on one artifact.

        Raises:
            DataError: an integer artifact, and no calibration data.
        """
        from edgefold.export.verify import verify

        evaluation = self._network.evaluation
        inputs = self._seeded() if evaluation is None else evaluation.inputs
        labels = None if evaluation is None else evaluation.labels
        return verify(artifact, self._reference(artifact), inputs, labels=labels)

    def _reference(self, artifact: Artifact) -> Any:
        from edgefold.pipeline import is_calibrated, quantize_model

        if not is_calibrated(artifact.precision):
            return self._network.module
        if self._network.calibration is None:
            raise DataError(
                f"'{artifact.path.name}' is {artifact.precision} and model '{self._network.name}' brings no calibration data; "
                "give the --calibration that it was made with"
            )
        if artifact.precision not in self._references:
            self._references[artifact.precision] = quantize_model(
                self._network.module,
                self._network.example_inputs,
                calibration=self._network.calibration,
                scheme=artifact.precision,
            )
        return self._references[artifact.precision]

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


def _verified(reports: dict[str, ParityReport]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import parity_text, percent

    yield table(
        ("artifact", "against", "parity", "samples", "top-1", "reference top-1", "same top-1", "criterion", "check"),
        [
            (
                name,
                report.reference,
                parity_text(report),
                str(report.samples),
                *(
                    "" if share is None else percent(share)
                    for share in (report.top1, report.top1_reference, report.top1_agreement)
                ),
                report.criterion,
                "ok" if report.passed else "FAILED",
            )
            for name, report in reports.items()
        ],
        "llrrrrrwl",
    )
