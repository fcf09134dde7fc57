"""An artifact, run in its real runtime in a subprocess, against the torch network that it was made from.

Criteria:

* computed in float: the largest error is at most the scheme's tolerance, a share of the output's range (`edgefold.schemes`).
* computed in integers, against the fake-quantized graph: SQNR = 10 log10(sum ref^2 / sum (ref - y)^2) of at least the scheme's,
  30 dB for 8-bit activations.
* rounded weights against a float network: at least 10 dB. This only tells a working file from a broken one: what quantization
  costs is seen in the accuracy.

Where a file computed in float fails, the criterion also says how far torch itself is off its own float64 outputs: of a network
that blows up rounding errors no file can be expected to be nearer.

A file that takes any batch is run with single samples and with batches of `OTHER_BATCH`, and each must pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgefold.artifact import Artifact, Precision
from edgefold.batch import Batch, as_tensors
from edgefold.errors import DataError
from edgefold.export.capture import output_tensors
from edgefold.export.program import QuantizedProgram
from edgefold.quantize.graph import output_nodes
from edgefold.quantize.joins import steps_of
from edgefold.results import OutputParity, ParityReport, RuntimeAgreement
from edgefold.runtime import run
from edgefold.schemes import scheme_of

Arrays = tuple[NDArray[Any], ...]
Step = float | NDArray[np.float32] | None  # of one output, or of each of its elements (1, ...)

SQNR_TO_FLOAT_DB: Final = 10.0
OTHER_BATCH: Final = 3
CLEAR_STEPS: Final = 2


def verify(
    artifact: Artifact,
    module: nn.Module | QuantizedProgram,
    inputs: Batch,
    *,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
) -> ParityReport:
    """Compares an artifact with its reference on the same inputs.

    Args:
        artifact: the file.
        module: the float network, or the quantized program of which the artifact was made.
        inputs: samples stacked along the first dimension, in torch's layout.
        labels: class indices, one a sample, for the top-1 accuracy of a classifier.

    Raises:
        DataError: no inputs, or another number of labels than samples.
        RuntimeFailure: the runtime cannot run the file.
    """
    reference = reference_outputs(module, inputs)
    arrays = tuple(tensor.numpy() for tensor in as_tensors(inputs))
    report = compare(artifact, module, run(artifact, arrays, batch=1), reference, labels=labels)
    return with_own_error(with_other_batch(report, artifact, module, arrays, reference), module, inputs, reference)


def compare(
    artifact: Artifact,
    module: nn.Module | QuantizedProgram,
    outputs: Arrays,
    reference: Arrays,
    *,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
) -> ParityReport:
    """The report for outputs that are there already; see `verify`."""
    steps = output_steps(module) if isinstance(module, QuantizedProgram) else (None,) * len(reference)
    parities = tuple(
        _parity(spec.name, ref, out, step)
        for spec, ref, out, step in zip(artifact.outputs, reference, outputs, steps, strict=True)
    )
    passed, criterion = _judge(artifact.precision, parities, quantized=isinstance(module, QuantizedProgram))
    classifier = labels is not None and outputs[0].ndim == 2
    clear, close = _clear_agreement(reference[0], outputs[0], steps[0])
    return ParityReport(
        artifact=artifact.path.name,
        format=artifact.format,
        precision=artifact.precision,
        reference="fake-quantized torch" if isinstance(module, QuantizedProgram) else "torch float32",
        outputs=parities,
        samples=len(outputs[0]),
        passed=passed,
        criterion=criterion,
        top1=top1(outputs[0], labels) if classifier and labels is not None else None,
        top1_reference=top1(reference[0], labels) if classifier and labels is not None else None,
        top1_agreement=_agreement(outputs[0], reference[0]),
        top1_clear=clear,
        top1_close=close,
    )


def with_other_batch(
    report: ParityReport, artifact: Artifact, module: nn.Module | QuantizedProgram, inputs: Arrays, reference: Arrays
) -> ParityReport:
    """The report on single samples, or the one on batches of them where that is worse; as it is for a file of one batch size.

    Raises:
        RuntimeFailure: the runtime cannot run the file with another batch.
    """
    if not artifact.dynamic_batch:
        return report
    size = min(OTHER_BATCH, artifact.inputs[0].max_batch or OTHER_BATCH)
    count = max(len(inputs[0]) // size, 1) * size
    several, expected = (tuple(np.resize(array, (count, *array.shape[1:])) for array in arrays) for arrays in (inputs, reference))
    other = compare(artifact, module, run(artifact, several, batch=size), expected)
    worse = report.passed and (not other.passed or _largest_error(other) > _largest_error(report))
    found = replace(report, outputs=other.outputs, passed=other.passed) if worse else report
    return replace(found, batches=(1, size))


def with_own_error(
    report: ParityReport, module: nn.Module | QuantizedProgram, inputs: Batch, reference: Arrays, *, batch: int = 1
) -> ParityReport:
    """The report with the error of torch's own float32 in its criterion, where a file that computes in float has failed."""
    if report.passed or isinstance(module, QuantizedProgram) or scheme_of(report.precision).tolerance is None:
        return report
    try:
        exact = reference_outputs(copy.deepcopy(module).double(), _in_float64(inputs), batch=batch)
    except Exception:  # code that takes float32 alone, or cannot be copied: the report goes without
        return report
    own = max(_parity("", ideal, ours, None).max_relative_error for ideal, ours in zip(exact, reference, strict=True))
    return replace(report, criterion=f"{report.criterion}; torch's own float32 outputs are {own:.1e} off its float64 ones")


def _in_float64(inputs: Batch) -> Batch:
    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    if isinstance(inputs, dict):
        return {name: wide(tensor) for name, tensor in inputs.items()}
    return tuple(wide(tensor) for tensor in as_tensors(inputs))


def _largest_error(report: ParityReport) -> float:
    return max(parity.max_relative_error for parity in report.outputs)


def reference_outputs(
    module: nn.Module | QuantizedProgram, inputs: Batch, *, batch: int = 1, progress: Callable[[], None] = lambda: None
) -> Arrays:
    """The outputs of a torch network, samples stacked, computed ``batch`` samples at a time.

    Raises:
        DataError: there are no samples.
    """
    network = module.reference() if isinstance(module, QuantizedProgram) else module
    if isinstance(module, QuantizedProgram) and module.pixels is not None:
        inputs = module.takes(as_tensors(inputs))
    tensors = as_tensors(inputs)
    count = len(tensors[0]) if tensors else 0
    if not count:
        raise DataError("verification inputs are empty, expected at least one sample")
    chunks: list[list[Tensor]] = []
    with torch.no_grad():
        for start in range(0, count, batch):
            samples = tuple(tensor[start : start + batch].clone() for tensor in tensors)  # code may write into its input
            result = network(**dict(zip(inputs, samples, strict=True))) if isinstance(inputs, dict) else network(*samples)
            chunks.append(output_tensors(result))
            progress()
    return tuple(torch.cat(parts).numpy() for parts in zip(*chunks, strict=True))


def output_steps(program: QuantizedProgram) -> tuple[Step, ...]:
    """The quantization step of each output; ``None`` for an output that stays float.

    Where values are joined in float, it is that of each element of the output, NaN where the element stays float.
    """
    steps = (steps_of(node) for node in output_nodes(program.program.graph))
    return tuple(step[:1].numpy() if isinstance(step, Tensor) else step for step in steps)


def top1(scores: NDArray[Any], labels: Sequence[int] | NDArray[np.int64]) -> float:
    """The share of samples whose largest score, of (samples, classes), is that of their label.

    Raises:
        DataError: another number of labels than samples, or a label that is none of the classes.
    """
    if len(scores) != len(labels):
        raise DataError(f"evaluation has {len(labels)} labels for {len(scores)} samples, expected one a sample")
    check_labels(labels, scores.shape[1])
    return float((scores.argmax(axis=1) == np.asarray(labels)).mean())


def check_labels(labels: Sequence[int] | NDArray[np.int64], classes: int) -> None:
    """Refuses class indices that no score belongs to.

    Raises:
        DataError: one is not from 0 to ``classes`` - 1.
    """
    array = np.asarray(labels)
    wrong = array[(array < 0) | (array >= classes)]
    if len(wrong):
        raise DataError(
            f"evaluation has the class index {wrong[0]}, the network gives {classes} scores, expected 0 to {classes - 1}; "
            "number the classes in the order of the scores"
        )


def agreement(first: str, second: str, a: Arrays, b: Arrays, steps: Sequence[Step]) -> RuntimeAgreement:
    """How far the outputs of two artifacts are apart, in the quantization steps of the outputs."""
    distances = [_in_steps(_error(x, y), step) for x, y, step in zip(a, b, steps, strict=True) if step is not None]
    clear, close = _clear_agreement(a[0], b[0], steps[0])
    flat = np.concatenate(distances) if distances else np.zeros(1)
    return RuntimeAgreement(
        first=first,
        second=second,
        max_steps=float(np.round(flat.max())),
        share_different=float((flat > 0.5).mean()),
        top1_agreement=_agreement(a[0], b[0]),
        top1_clear=clear,
        top1_close=close,
    )


def sqnr_db(reference: NDArray[Any], output: NDArray[Any]) -> float | None:
    """10 log10(sum ref^2 / sum (ref - output)^2); ``None`` where they are equal."""
    exact = reference.astype(np.float64)
    noise = float(((exact - output) ** 2).sum())
    if noise == 0.0:
        return None
    signal = float((exact**2).sum())
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def _parity(name: str, reference: NDArray[Any], output: NDArray[Any], step: Step) -> OutputParity:
    if reference.shape != output.shape:
        raise DataError(f"output '{name}' has shape {output.shape}, the torch network gives {reference.shape}")
    error = _error(reference, output)
    span = float(reference.max() - reference.min()) or 1.0
    steps = None if step is None else _in_steps(error, step)
    return OutputParity(
        name=name,
        max_abs_error=float(error.max()),
        max_relative_error=float(error.max() / span),
        sqnr_db=sqnr_db(reference, np.nan_to_num(output)) if np.isfinite(output).all() else -np.finfo(np.float32).max.item(),
        max_steps=None if steps is None else float(np.round(steps.max())),
        share_different=None if steps is None else float((steps > 0.5).mean()),
    )


def _error(reference: NDArray[Any], output: NDArray[Any]) -> NDArray[np.float64]:
    """The distance of each element; a file that returns NaN must fail every comparison."""
    error = np.abs(reference.astype(np.float64) - output)
    return np.where(np.isfinite(error), error, np.finfo(np.float32).max)


def _in_steps(error: NDArray[np.float64], step: float | NDArray[np.float32]) -> NDArray[np.float64]:
    """The errors of the elements that lie on a grid, in its steps, as one row."""
    steps: NDArray[np.float64] = error / step
    return steps[~np.isnan(steps)]


def _judge(precision: Precision, parities: tuple[OutputParity, ...], *, quantized: bool) -> tuple[bool, str]:
    scheme = scheme_of(precision)
    tolerance = scheme.tolerance
    if tolerance is not None and (quantized or not scheme.rounded):
        worst = max(parity.max_relative_error for parity in parities)
        return worst <= tolerance, f"largest error at most {tolerance:g} of the output range"
    limit = scheme.sqnr_db if quantized else SQNR_TO_FLOAT_DB
    against = "the fake-quantized graph" if quantized else "the float network"
    passed = all(parity.sqnr_db is None or parity.sqnr_db >= limit for parity in parities)
    return passed, f"SQNR of at least {limit:g} dB against {against}"


def _agreement(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    if first.ndim != 2 or first.shape != second.shape:
        return None
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def _clear_agreement(first: NDArray[Any], second: NDArray[Any], step: Step) -> tuple[float | None, int | None]:
    """Equal top-1 where the best two of ``first`` (samples, classes) differ by more than `CLEAR_STEPS`, and how many do not.

    Within that, a runtime's own rounding decides. ``None`` where there is no one step, and no share where no sample is clear.
    """
    if not isinstance(step, float) or first.ndim != 2 or first.shape != second.shape or first.shape[1] < 2:
        return None, None
    best = np.sort(first.astype(np.float64), axis=1)[:, -2:]
    # Values on a grid are multiples of the step but for float rounding.
    clear = best[:, 1] - best[:, 0] > (CLEAR_STEPS + 0.01) * step
    equal = first.argmax(axis=1) == second.argmax(axis=1)
    return (float(equal[clear].mean()) if clear.any() else None), int((~clear).sum())
