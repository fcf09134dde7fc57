"""The whole flow for one network: every format in every precision, verified, measured and bundled.

One variant that fails does not stop the others: it is in the bundle's results with the stage and the sentence that says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefold import errors
from edgefold.artifact import MAX_BATCH, Format, Precision
from edgefold.errors import DataError, EdgefoldError, InputError, RuntimeFailure, UnsupportedError, UsageError
from edgefold.kept import Shelf
from edgefold.kept_stages import KeptStages
from edgefold.network import (
    ALL_FORMATS,
    DEFAULT_PRECISIONS,
    Evaluation,
    Network,
    Progress,
    Quiet,
    ShipOptions,
    tool_versions,
)
from edgefold.report.content import Shipment, Variant
from edgefold.schemes import combinations, left_out, scheme_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgefold.batch import Batch
    from edgefold.bundle.reader import Bundle
    from edgefold.device_bench import BenchOptions
    from edgefold.export.fold import FoldResult
    from edgefold.network import Metric
    from edgefold.pipeline import Lowerings
    from edgefold.preprocess import Preprocessing


def ship(
    module_or_name: nn.Module | str,
    example_inputs: Batch | None = None,
    calibration: Iterable[Batch] | Tensor | None = None,
    evaluation: Evaluation | tuple[Tensor, NDArray[np.int64] | Sequence[int]] | None = None,
    metric: Metric | None = None,
    preprocess: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    *,
    formats: Sequence[Format | str] = ALL_FORMATS,
    precisions: Sequence[Precision | str] = DEFAULT_PRECISIONS,
    device: str | None = None,
    lowering: Lowerings = "auto",
    timing: bool | None = None,
    max_size: int | None = None,
    dynamic_batch: bool = False,
    portable: bool = False,
    max_batch: int = MAX_BATCH,
    out: Path | str,
    force: bool = False,
    bench_options: BenchOptions | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Folds, quantizes, exports, verifies, measures and bundles a network.

    Args:
        module_or_name: a module in eval mode, or the name of a model as the command line takes it, which brings its example
            inputs and, if it is built in, its data.
        example_inputs: one minibatch, NCHW; needed for a module.
        calibration: inputs as the network sees them in use, or pictures (uint8 arrays, `PIL.Image`), which are then prepared with
            ``preprocess``; needed for integer precisions.
        evaluation: inputs and class indices, for the accuracy of each artifact.
        metric: of (outputs, class indices), higher is better; top-1 by default.
        preprocess: from an image to the network's input; written into the bundle.
        labels: names of the classes.
        formats: any of ``onnx``, ``tflite``, ``executorch``.
        precisions: any of ``fp32``, ``int8`` and so on.
        device: where it is measured, this machine by default. One that is named is what the files are for: forms may win that
            are slow on CPUs unlike its.
        lowering: how layers are computed.
        timing: whether the lowering ``auto`` ends with a measurement of the whole network in each form that may be the fastest;
            by default where ``device`` is this machine.
        max_size: the most bytes that a file may have; layers take smaller forms for it where they are slower.
        dynamic_batch: make files that take any number of samples at once.
        portable: make integer ONNX files exact on every x86 CPU, also on those that are unlike this one.
        max_batch: the most samples at once in an ExecuTorch file with a dynamic batch; the other formats have no limit.
        out: the folder; its zip is put beside it.
        force: replace an existing bundle.
        bench_options: how it is measured.
        name: how the network is called; by default its class or the name given.
        progress: told what is going on.

    Raises:
        InputError: the network, its data or the options cannot be used, or ``out`` cannot be written. What goes wrong with one
            variant alone is not raised but recorded in the bundle.
    """
    from edgefold.models.inputs import prepared
    from edgefold.pipeline import as_format, as_precision

    if isinstance(module_or_name, str):
        network = named_network(module_or_name)
    elif example_inputs is None:
        raise UsageError("example_inputs are missing; give one minibatch of the shape that the model takes")
    else:
        network = Network(type(module_or_name).__name__, module_or_name, example_inputs)
    given: dict[str, Any] = {
        "name": name,
        "example_inputs": example_inputs,
        "calibration": None if calibration is None else prepared(calibration, preprocess),
        "evaluation": as_evaluation(evaluation),
        "metric": metric,
        "preprocessing": preprocess,
        "labels": None if labels is None else tuple(labels),
        "calibration_source": None if calibration is None else "given by the caller",
    }
    network = replace(network, **{key: value for key, value in given.items() if value is not None})
    options = ShipOptions(
        formats=tuple(as_format(value) for value in formats),
        precisions=tuple(as_precision(value) for value in precisions),
        device=device or "host",
        native=device is not None and not portable,
        lowering=lowering,
        bench=bench_options,
        force=force,
        timing=timing,
        max_size_bytes=max_size,
        dynamic_batch=dynamic_batch,
        portable=portable,
        max_batch=max_batch,
    )
    return ship_network(network, Path(out), options, progress)


def ship_network(
    network: Network,
    out: Path,
    options: ShipOptions | None = None,
    progress: Progress | None = None,
    shelf: Shelf | None = None,
) -> Bundle:
    """Makes the bundle ``out`` (a folder, and the zip of it beside it) of a network.

    Args:
        network: what is shipped.
        out: the folder.
        options: how.
        progress: told what is going on.
        shelf: where the results of the stages are kept for another run; its state stands for the network.

    Raises:
        InputError: the network, its data or the options cannot be used, ``out`` cannot be written, or no format can express the
            network. What goes wrong with one variant alone is not raised but recorded in the bundle.
        RuntimeFailure: every converter broke.
    """
    from edgefold.bundle.manifest import Scales
    from edgefold.bundle.reader import load_bundle
    from edgefold.bundle.writer import Contract, check_output, write_bundle
    from edgefold.calibrated import calibration_notes, calibration_record, join_notes
    from edgefold.device_bench.runners import open_runner
    from edgefold.export.fold import unfolded
    from edgefold.pipeline import fold

    options = replace(options or ShipOptions(), random_calibration=network.random_calibration)
    progress = progress or Quiet()
    if not options.formats or not options.precisions:
        raise UsageError("nothing to ship: give at least one format and one precision")
    combinations(options.formats, options.precisions)  # refuses a precision that is in none
    open_runner(options.device)  # refuses what is no device; nothing is contacted yet
    check_output(out, force=options.force)
    stages = KeptStages(network, options, progress, shelf or Shelf())
    progress.stage("fold")
    module, inputs, capture = network.module, network.example_inputs, unfolded
    if options.fold:
        capture = partial(fold, progress=progress)
    folded = stages.folded(lambda: capture(module, inputs))
    _refuse_labels(network, folded)
    if not options.fold:
        options = stages.options = replace(options, lowering="keep")
    quantized, samples = stages.quantized(folded)
    calibrated = any(scheme_of(scheme).calibrated for scheme in quantized)
    calibration = calibration_record(network, samples) if calibrated else None
    with tempfile.TemporaryDirectory(prefix="edgefold-ship-") as folder:
        variants = stages.written(folded, quantized, Path(folder))
        _refuse_empty(variants, folded=options.fold)
        variants, agreements, verified = stages.verified(variants, folded, quantized)
        variants = stages.measured(variants, verified)
        explanations = stages.explained(variants, quantized, samples)
        shipment = Shipment(
            name=network.name,
            variants=tuple(variants),
            fold=folded.plan,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            description=network.description,
            parameters=sum(layer.parameters for layer in folded.plan.layers) or None,
            notes=(
                *network.notes,
                *_notes(network, options),
                *calibration_notes(calibration),
                *join_notes(quantized),
                *_late(variants, options),
                *_scheme_notes(variants, options),
            ),
            agreement=agreements,
            explanations=explanations,
        )
        contract = Contract(
            preprocessing=network.preprocessing,
            labels=network.labels,
            scales=tuple(Scales.of(program) for program in quantized.values()),
            calibration=calibration,
            tools=tool_versions(),
        )
        progress.stage("bundle")
        write_bundle(shipment, contract, out, force=options.force)
    return load_bundle(out)


def _refuse_labels(network: Network, folded: FoldResult) -> None:
    """Class indices that no score belongs to would only show as an accuracy of 0 %, at the end."""
    from edgefold.export.verify import check_labels
    from edgefold.quantize.graph import output_nodes

    scores = output_nodes(folded.program.graph)[0].meta.get("val")
    if network.evaluation is not None and network.metric is None and scores is not None and scores.ndim == 2:
        check_labels(network.evaluation.labels, scores.shape[1])


def _refuse_empty(variants: Sequence[Variant], *, folded: bool) -> None:
    """A bundle without a single artifact is no bundle: the first failure is then the failure of the whole."""
    failures = [variant.failure for variant in variants if variant.failure is not None]
    if len(failures) == len(variants):
        found: type[EdgefoldError] = getattr(errors, failures[0].error)
        kind = UnsupportedError if issubclass(found, InputError) else RuntimeFailure
        hint = "" if folded else "; the network was not folded: leave out --skip fold, since folding rewrites such layers"
        raise kind(f"no artifact could be made: {failures[0].message}{hint}")


def named_network(
    name: str, *, kwargs: Mapping[str, Any] | None = None, weights: Path | None = None, trust: bool = False
) -> Network:
    """The network that a name stands for, with the data that comes with it; see `edgefold.models.sources.load_source`."""
    from edgefold.models.sources import load_source

    source = load_source(name, kwargs=kwargs, weights=weights, trust=trust)
    data = source.data or "its own data"
    evaluation = None
    if source.evaluation is not None:
        images, labels = source.evaluation.images, source.evaluation.labels.numpy()
        evaluation = Evaluation((images,), labels, f"{len(labels):,} test images of {data}")
    return Network(
        name=source.name,
        module=source.module,
        example_inputs=source.example_inputs,
        calibration=None if source.calibration is None else source.calibration.images,
        calibration_source="" if source.calibration is None else f"{data} (training images)",
        evaluation=evaluation,
        preprocessing=source.preprocess,
        labels=source.labels or (),
        notes=source.notes,
        description="" if source.accuracy is None else f"trained on {data}: {source.accuracy:.2%} top-1 on its whole test set",
    )


def as_evaluation(value: Evaluation | tuple[Tensor, Any] | None) -> Evaluation | None:
    """Evaluation data as it is, or from an (images, class indices) pair.

    Raises:
        DataError: the numbers of images and labels differ, there are none, or the labels are no class indices.
    """
    from edgefold.models.inputs import class_indices

    if value is None or isinstance(value, Evaluation):
        return value
    images, labels = value
    found = Evaluation((images,), class_indices(labels, "evaluation"))
    if not len(images) or len(images) != len(found.labels):
        raise DataError(
            f"evaluation has {len(images)} images and {len(found.labels)} labels, expected the same number, at least 1"
        )
    return found


def _notes(network: Network, options: ShipOptions) -> tuple[str, ...]:
    notes = []
    if not options.fold:
        notes.append("Not folded: every layer is computed as the network is written.")
    if not options.measure:
        notes.append("Not measured: the bundle has no times.")
    if network.evaluation is None:
        notes.append("No evaluation data was given: outputs were compared on random inputs, accuracy was not measured.")
    return tuple(notes)


def _late(variants: Sequence[Variant], options: ShipOptions) -> list[str]:
    """The files that take longer than they may: the search for layers in float timed files of the same form, at another time."""
    if options.max_ms is None:
        return []
    return [
        f"{variant.name} takes {variant.measurement.median_ns / 1e6:.3g} ms, and {options.max_ms:g} ms were asked for."
        for variant in variants
        if variant.measurement is not None
        and scheme_of(variant.precision).rounded
        and variant.measurement.median_ns > options.max_ms * 1e6
    ]


def _scheme_notes(variants: Sequence[Variant], options: ShipOptions) -> tuple[str, ...]:
    """What is to be known of the precisions of the files that were made, and which files there cannot be."""
    missing = left_out(options.formats, options.precisions)
    notes = dict.fromkeys(scheme_of(variant.precision).note for variant in variants if variant.artifact is not None)
    return (*missing, *(f"{note[0].upper()}{note[1:]}." for note in notes if note))
