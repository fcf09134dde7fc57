"""The stages of shipping with their results kept: each is made again only where something changed that it depends on.

fold        the folded network
calibrate   the quantized network of one precision
export      one artifact with its plan; a failure is not kept
verify      what all artifacts gave against torch, together
measure     the times of one artifact, until they are wanted anew
explain     which layers lose accuracy
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgefold.artifact import Precision
from edgefold.kept import Shelf
from edgefold.network import Network, Progress, ShipOptions
from edgefold.report.content import Accuracy, Failure, Variant
from edgefold.report.explanation import Explanation
from edgefold.results import Measurement, ParityReport, RuntimeAgreement, from_dict, to_json
from edgefold.schemes import combinations, scheme_of
from edgefold.variants import Verified, calibration_samples, emit_all, explain_all, measure_all, quantize_all, verify_all

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram

_RESULT: Final = "result.json"
_PROGRAM: Final = "program"
_VERIFIED: Final = "verified.safetensors"


@dataclass(frozen=True, slots=True)
class _Checks:
    """What verification added to the artifacts, in their order."""

    parities: tuple[ParityReport | None, ...]
    accuracies: tuple[Accuracy | None, ...]
    failures: tuple[Failure | None, ...]
    agreements: tuple[RuntimeAgreement, ...]


@dataclass(frozen=True, slots=True)
class _Explanations:
    """One an integer scheme."""

    found: tuple[Explanation, ...]


class KeptStages:
    """The stages of shipping one network, in their order; without a folder of the shelf each is simply done."""

    def __init__(self, network: Network, options: ShipOptions, progress: Progress, shelf: Shelf) -> None:
        # A metric is code, and what several formats agree on is decided for all of them at once.
        self._shelf = replace(shelf, folder=None) if network.metric is not None or options.agree else shelf
        self.network, self.options, self.progress = network, options, progress
        self._keys: dict[Precision | None, str] = {}  # of the program of each precision, and of the float one
        self._machine = _machine(options.device) if self._shelf.folder is not None else ()

    def folded(self, make: Callable[[], FoldResult]) -> FoldResult:
        """The canonical network."""
        from edgefold.batch import as_tensors, digest

        example = digest([as_tensors(self.network.example_inputs)])
        key = self._keys[None] = self._shelf.key("fold", example, self.options.fold, _versions())
        return self._shelf.take("fold", key, make, _save_fold, _load_fold)

    def quantized(self, folded: FoldResult) -> tuple[dict[Precision, QuantizedProgram], list[tuple[Tensor, ...]]]:
        """One program a scheme, all from the same samples, and those samples."""
        from edgefold.batch import digest

        options = self.options
        if self._shelf.folder is None or options.mixed_drop is not None or options.max_ms is not None:
            self._shelf = replace(self._shelf, folder=None)  # what is left in float was decided by times
            return quantize_all(self.network, folded, options, self.progress)
        schemes = [precision for precision in options.precisions if scheme_of(precision).rounded]
        samples = calibration_samples(self.network, folded, schemes) if schemes else []
        network = replace(self.network, calibration=samples) if self.network.calibration is not None else self.network
        settings = [options.observer, options.equalize, options.exclude, options.io, network.preprocessing]
        programs = {}
        for scheme in schemes:
            data = digest(samples) if scheme_of(scheme).calibrated else ""
            key = self._keys[scheme] = self._shelf.key("calibrate", self._keys[None], scheme, data, settings)
            one = replace(options, precisions=(scheme,))

            def make(one: ShipOptions = one, scheme: Precision = scheme) -> QuantizedProgram:
                return quantize_all(network, folded, one, self.progress)[0][scheme]

            programs[scheme] = self._shelf.take("calibrate", key, make, _save_quantized, lambda at: _load_quantized(at, folded))
        return programs, samples

    def written(self, folded: FoldResult, quantized: dict[Precision, QuantizedProgram], folder: Path) -> list[Variant]:
        """Every variant as a file."""
        options = self.options
        if self._shelf.folder is None:
            return emit_all(folded, quantized, options, folder, self.progress)
        wanted = combinations(options.formats, options.precisions)
        self.progress.stage("export", len(wanted))
        steps, found = _Steps(self.progress), []
        for format, precision in wanted:
            one = replace(options, formats=(format,), precisions=(precision,))
            key = self._shelf.key(
                "export",
                self._keys[precision if precision in quantized else None],
                [format, precision, options.lowering, options.timing, options.max_size_bytes, options.native, options.portable],
                [options.io, options.layout, options.dynamic_batch, options.max_batch],
                self._machine,
                None if options.bench is None else [options.bench.threads, options.bench.cores],
            )

            def make(one: ShipOptions = one) -> Variant:
                return emit_all(folded, quantized, one, folder, steps)[0]

            found.append(self._shelf.take("export", key, make, _save_variant, _load_variant, worth=lambda made: not made.failure))
        return found

    def verified(
        self, variants: Sequence[Variant], folded: FoldResult, quantized: dict[Precision, QuantizedProgram]
    ) -> tuple[list[Variant], tuple[RuntimeAgreement, ...], Verified]:
        """The variants with what they gave against torch, their agreement, and one batch with its outputs."""
        options = self.options

        def make() -> tuple[list[Variant], tuple[RuntimeAgreement, ...], Verified]:
            return verify_all(variants, self.network, folded, quantized, options, self.progress)

        if self._shelf.folder is None:
            return make()
        key = self._shelf.key(
            "verify",
            [(variant.name, variant.artifact and variant.artifact.sha256) for variant in variants],
            [self._keys[precision] for precision in (None, *quantized)],
            _evaluation(self.network),
            [options.parity_samples, options.max_drop, options.dynamic_batch],
        )
        return self._shelf.take(
            "verify",
            key,
            make,
            _save_checks,
            lambda place: _load_checks(place, variants),
            worth=lambda made: not any(variant.failure for variant in made[0]),
        )

    def measured(self, variants: Sequence[Variant], verified: Verified) -> list[Variant]:
        """The variants with their times."""
        options = self.options
        if not options.measure:
            return list(variants)
        if self._shelf.folder is None:
            return measure_all(variants, verified, options, self.progress)
        return [self._measured(variant, verified) if variant.artifact else variant for variant in variants]

    def _measured(self, variant: Variant, verified: Verified) -> Variant:
        assert variant.artifact is not None
        key = self._shelf.key("measure", variant.artifact.sha256, self._machine, self.options.bench)

        def make() -> Variant:
            return measure_all([variant], verified, self.options, self.progress)[0]

        def load(place: Path) -> Variant:
            return replace(variant, measurement=_read(Measurement, place))

        return self._shelf.take(
            "measure",
            key,
            make,
            lambda made, place: _write(made.measurement, place),
            load,
            worth=lambda made: made.measurement is not None,
        )

    def explained(
        self, variants: Sequence[Variant], quantized: dict[Precision, QuantizedProgram], samples: Sequence[tuple[Tensor, ...]]
    ) -> tuple[Explanation, ...]:
        """Which layers lose accuracy, and whether integers save time."""

        def make() -> _Explanations:
            return _Explanations(explain_all(variants, quantized, samples, self.options, self.progress))

        if self._shelf.folder is None:
            return make().found
        times = [
            (variant.name, variant.artifact and variant.artifact.sha256, variant.measurement and variant.measurement.date)
            for variant in variants
        ]
        how = (self._machine, self.options.bench, self.options.explain)  # dates have whole seconds: two ways may share one
        key = self._shelf.key("explain", [self._keys[precision] for precision in quantized], times, *how)

        def load(place: Path) -> _Explanations:
            found: _Explanations = _read(_Explanations, place)
            return found

        kept: _Explanations = self._shelf.take("explain", key, make, _write, load)
        return kept.found


class _Steps:
    """Passes on the steps of a stage that was announced already."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `edgefold.network.Progress.stage`."""

    def step(self) -> None:
        """See `edgefold.network.Progress.step`."""
        self._progress.step()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from edgefold.network import tool_versions

    return {**tool_versions(), "edgefold": version("edgefold")}


def _machine(device: str) -> list[Any]:
    """What stands for a device: its name, this machine's CPU, and the costs of layers that were measured on it."""
    from edgefold.artifact import sha256_of
    from edgefold.device_bench.runners import open_runner
    from edgefold.export.lower.tables.cache import table_path

    with open_runner("host") as runner:
        host = runner.info()
    costs = table_path(device)
    return [device, host.cpu, host.features, sha256_of(costs) if costs.is_file() else ""]


def _evaluation(network: Network) -> list[str]:
    """What stands for the data that files are judged on."""
    from edgefold.batch import digest

    if network.evaluation is None:
        return []
    labels = [int(label) for label in network.evaluation.labels]
    return [digest([network.evaluation.inputs]), json.dumps(labels), network.evaluation.data]


def _write(result: Any, place: Path) -> None:
    (place / _RESULT).write_text(to_json(result) + "\n", encoding="utf-8")


def _read(kind: type[Any], place: Path) -> Any:
    return from_dict(kind, json.loads((place / _RESULT).read_text(encoding="utf-8")))


def _save_fold(folded: FoldResult, place: Path) -> None:
    from edgefold.export.saved import save_program

    save_program(folded.program, place / _PROGRAM)
    _write(folded.plan, place)


def _load_fold(place: Path) -> FoldResult:
    from edgefold.export.fold import FoldResult
    from edgefold.export.plan import FoldPlan
    from edgefold.export.saved import load_program

    return FoldResult(load_program(place / _PROGRAM), _read(FoldPlan, place))


def _save_quantized(quantized: QuantizedProgram, place: Path) -> None:
    from edgefold.export.saved import save_quantized

    save_quantized(quantized, place / _PROGRAM)


def _load_quantized(place: Path, folded: FoldResult) -> QuantizedProgram:
    from edgefold.export.saved import load_quantized

    return load_quantized(place / _PROGRAM, folded.plan)


def _save_variant(variant: Variant, place: Path) -> None:
    assert variant.artifact is not None
    shutil.copyfile(variant.artifact.path, place / variant.artifact.path.name)
    _write(variant, place)


def _load_variant(place: Path) -> Variant:
    variant: Variant = _read(Variant, place)
    assert variant.artifact is not None
    return replace(variant, artifact=replace(variant.artifact, path=place / variant.artifact.path.name))


def _save_checks(made: tuple[list[Variant], tuple[RuntimeAgreement, ...], Verified], place: Path) -> None:
    from safetensors.numpy import save_file

    variants, agreements, verified = made
    checks = _Checks(
        tuple(variant.parity for variant in variants),
        tuple(variant.accuracy for variant in variants),
        tuple(variant.failure for variant in variants),
        agreements,
    )
    _write(checks, place)
    arrays = {f"inputs:{index}": array for index, array in enumerate(verified.inputs)}
    for name, outputs in verified.outputs.items():
        arrays |= {f"{name}:{index}": array for index, array in enumerate(outputs)}
    save_file({name: array.copy() for name, array in arrays.items()}, place / _VERIFIED)


def _load_checks(place: Path, variants: Sequence[Variant]) -> tuple[list[Variant], tuple[RuntimeAgreement, ...], Verified]:
    from safetensors.numpy import load_file

    checks: _Checks = _read(_Checks, place)
    found = [
        replace(variant, parity=parity, accuracy=accuracy, failure=failure)
        for variant, parity, accuracy, failure in zip(variants, checks.parities, checks.accuracies, checks.failures, strict=True)
    ]
    arrays: dict[str, list[Any]] = {}
    for name, array in sorted(load_file(place / _VERIFIED).items(), key=lambda item: int(item[0].rpartition(":")[2])):
        arrays.setdefault(name.rpartition(":")[0], []).append(array)
    inputs = tuple(arrays.pop("inputs"))
    return found, checks.agreements, Verified(inputs, {name: tuple(outputs) for name, outputs in arrays.items()})
