"""The flow, one function a stage: fold, quantize, export. What it composes lives in the packages below.

`edgefold.ship` runs all of it for several formats and precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgefold.artifact import MAX_BATCH, Artifact, Format, Precision
from edgefold.errors import OutputError, UsageError, unknown_name
from edgefold.schemes import DEFAULT_EXPONENT_BITS, check_format, scheme_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgefold.batch import Batch
    from edgefold.device_bench.closing import Written
    from edgefold.export.fold import FoldResult
    from edgefold.export.lower.costs import CostModel
    from edgefold.export.plan import Lowering
    from edgefold.export.program import LoweredProgram, Program, QuantizedProgram
    from edgefold.network import Progress
    from edgefold.preprocess import Preprocessing

Lowerings = Literal["auto", "keep", "dense", "grouped", "split"]
IoType = Literal["float32", "int8", "uint8"]


def fold(module: nn.Module, example_inputs: Batch, *, progress: Progress | None = None) -> FoldResult:
    """The canonical network: every linear convolution, however written, is one conv with its mask fused in.

    Args:
        module: in eval mode, float32; it is not changed.
        example_inputs: one minibatch, NCHW.
        progress: told of the stages and their steps.

    Raises:
        ModelError: not a module in eval mode with finite weights, or it fails on the inputs.
        DataError: the inputs are no batch, or an (image, label) pair.
        UnsupportedError: the module cannot be captured as a graph.
    """
    from edgefold.export.fold import fold_module

    return fold_module(module, example_inputs, progress=progress)


def quantize_model(
    model: nn.Module | FoldResult,
    example_inputs: Batch,
    *,
    calibration: Iterable[Batch] | Tensor | None = None,
    scheme: Precision | str = "int8",
    observer: str = "auto",
    equalize: bool = False,
    exclude: Sequence[str] = (),
    pixels: Preprocessing | None = None,
    io: IoType = "float32",
    exponent_bits: int = DEFAULT_EXPONENT_BITS,
    progress: Callable[[], None] = lambda: None,
) -> QuantizedProgram:
    """Calibrates the canonical network once; the result can be exported to every format.

    Args:
        model: a module, which is folded first, or a fold result.
        example_inputs: one minibatch, NCHW.
        calibration: inputs as the network sees them in use, for a scheme that needs them; read once.
        scheme: an integer precision.
        observer: how ranges are chosen: ``auto``, ``minmax``, ``percentile``, ``mse`` or ``entropy``.
        equalize: scale the channels of layers that follow each other against each other first (`edgefold.quantize.correct`).
        exclude: layers (module paths) that stay in float.
        pixels: the network's preprocessing; with it the program takes camera pixels, and normalises them in its first layer.
        io: what its files will take and give; with ``float32`` ends, values of unlike ranges may be joined in float before them.
        exponent_bits: of the weights of ``log2``.
        progress: called after each calibration sample.

    Raises:
        UsageError: unknown scheme, observer or layer, or calibration data is missing or of no use.
        UnsupportedError: ``pixels``, and the network does not begin with a convolution.
        DataError: calibration is empty, holds labels, NaN or infinite values, or has another shape than the example.
    """
    from edgefold.quantizing import Calibration, quantize_folded

    precision = as_precision(scheme)
    form = scheme_of(precision)
    if not form.rounded:
        raise UsageError(f"scheme '{precision}' is not quantized; give 'int8'")
    check_calibration(precision, given=calibration is not None)
    if calibration is None and (observer != "auto" or pixels is not None):
        unused = "--io uint8" if observer == "auto" else f"--observer {observer}"
        raise UsageError(f"scheme '{precision}' has no ranges of activations from data; leave {unused} out")
    options = Calibration(observer, equalize, tuple(exclude), pixels, io, exponent_bits)
    return quantize_folded(as_folded(model, example_inputs), calibration, precision, options, progress)


def export_model(
    model: nn.Module | FoldResult | QuantizedProgram,
    example_inputs: Batch | None = None,
    *,
    format: Format | str,
    precision: Precision | str | None = None,
    calibration: Iterable[Batch] | Tensor | None = None,
    lowering: Lowerings = "auto",
    device: str | None = None,
    costs: CostModel | None = None,
    agree: bool = False,
    io: IoType = "float32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    timing: bool | None = None,
    max_size: int | None = None,
    dynamic_batch: bool = False,
    portable: bool = False,
    max_batch: int = MAX_BATCH,
    out: Path | str,
    force: bool = False,
) -> Artifact:
    """Writes one file.

    Args:
        model: a module is folded, and quantized if the precision asks for it; a fold result is not folded again; a quantized
            program is not quantized again.
        example_inputs: one minibatch, NCHW; needed for a module only.
        format: ``onnx``, ``tflite`` or ``executorch``.
        precision: ``fp32`` (default), ``int8`` and so on; not for a quantized program.
        calibration: inputs for an integer precision; not for a quantized program.
        lowering: how layers are computed.
        device: where it will run, the host by default. One that is named is what the file is for: forms may win that are slow on
            CPUs unlike its.
        costs: measured times of layers on that device.
        agree: compute each layer in one numeric class in all formats, so that their integers can be equal.
        io: element type of the quantized inputs and outputs.
        layout: order of 4-D inputs and outputs in the file.
        timing: whether the lowering ``auto`` ends with a measurement of the whole network in each form that may be the fastest;
            by default where ``device`` is this machine.
        max_size: the most bytes that the file may have; layers take smaller forms for it where they are slower.
        dynamic_batch: make a file that takes any number of samples at once.
        portable: make an integer ONNX file exact on every x86 CPU, also on those that are unlike this one.
        max_batch: the most samples at once in an ExecuTorch file with a dynamic batch; the other formats have no limit.
        out: the file; without a suffix it gets the format's own.
        force: replace an existing file.

    Raises:
        UsageError: options that do not go together, or no form of the network is as small as ``max_size``.
        OutputError: ``out`` exists or cannot be written.
        UnsupportedError: an op that the format cannot express, or one that needs a fixed batch.
        RuntimeFailure: the converter broke.
    """
    return export_with_plan(
        model,
        example_inputs,
        format=format,
        precision=precision,
        calibration=calibration,
        lowering=lowering,
        device=device,
        costs=costs,
        agree=agree,
        io=io,
        layout=layout,
        timing=timing,
        max_size=max_size,
        dynamic_batch=dynamic_batch,
        portable=portable,
        max_batch=max_batch,
        out=out,
        force=force,
    ).artifact


def export_with_plan(
    model: nn.Module | FoldResult | QuantizedProgram,
    example_inputs: Batch | None = None,
    *,
    format: Format | str,
    precision: Precision | str | None = None,
    calibration: Iterable[Batch] | Tensor | None = None,
    lowering: Lowerings = "auto",
    device: str | None = None,
    costs: CostModel | None = None,
    agree: bool = False,
    io: IoType = "float32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    timing: bool | None = None,
    max_size: int | None = None,
    dynamic_batch: bool = False,
    portable: bool = False,
    max_batch: int = MAX_BATCH,
    random_calibration: bool = False,
    out: Path | str,
    force: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Written:
    """The same with the plan; ``progress`` is called after each form that was written, ``random_calibration`` marks the file."""
    from edgefold.device_bench.closing import Request, emit_fastest
    from edgefold.device_bench.runners import open_runner
    from edgefold.export.emitters.base import EmitOptions
    from edgefold.export.program import QuantizedProgram

    form = as_format(format)
    if device is not None:
        open_runner(device)  # refuses what is no device; nothing is contacted yet
    camera = model.pixels if isinstance(model, QuantizedProgram) else None
    options = EmitOptions(io, layout, force, camera, dynamic_batch, max_batch, portable, random_calibration)
    target = as_output(Path(out), form)
    check_free(target, force=force)
    check_format(form, model.scheme if isinstance(model, QuantizedProgram) else as_precision(precision or Precision.FP32))
    program, chosen = _prepared(model, example_inputs, precision, calibration, io)
    choices = _agreed(program, chosen, lowering, device, costs)[form] if agree else None
    native = device is not None and not portable
    request = Request(form, chosen, lowering, device or "host", costs, timing, max_size, choices, native)
    return emit_fastest(program, request, options, target, progress)


def lower_model(
    model: nn.Module | FoldResult | QuantizedProgram,
    example_inputs: Batch | None = None,
    *,
    format: Format | str,
    precision: Precision | str | None = None,
    calibration: Iterable[Batch] | Tensor | None = None,
    lowering: Lowerings = "auto",
    device: str | None = None,
    costs: CostModel | None = None,
    agree: bool = False,
) -> LoweredProgram:
    """The network with the form of each layer chosen for one format, precision and device; see `export_model`."""
    from edgefold.export.lower.lower import lower

    program, chosen = _prepared(model, example_inputs, precision, calibration)
    form = as_format(format)
    forms: Lowerings | dict[str, Lowering] = _agreed(program, chosen, lowering, device, costs)[form] if agree else lowering
    return lower(program, format=form, precision=chosen, lowering=forms, device=device or "host", costs=costs, whole=agree)


def _prepared(
    model: nn.Module | FoldResult | QuantizedProgram,
    example_inputs: Batch | None,
    precision: Precision | str | None,
    calibration: Iterable[Batch] | Tensor | None,
    io: IoType = "float32",
) -> tuple[Program, Precision]:
    """The canonical network with what its precision needs."""
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram

    if isinstance(model, QuantizedProgram):
        if precision is not None or calibration is not None:
            raise UsageError(f"the model is quantized already ({model.scheme}); do not give precision or calibration")
        return model.program, model.scheme
    chosen = as_precision(precision or Precision.FP32)
    if isinstance(model, FoldResult):
        example_inputs = model.program.example_inputs
    elif example_inputs is None:
        raise UsageError("example_inputs are missing; give one minibatch of the shape that the model takes")
    check_calibration(chosen, given=calibration is not None)
    if scheme_of(chosen).rounded:
        return quantize_model(model, example_inputs, calibration=calibration, scheme=chosen, io=io).program, chosen
    return as_folded(model, example_inputs).program, chosen


def _agreed(
    program: Program, precision: Precision, lowering: Lowerings, device: str | None, costs: CostModel | None
) -> dict[Format, dict[str, Lowering]]:
    """The form of each layer in each format, of one numeric class in all of them."""
    from edgefold.export.lower.agree import agree

    if not scheme_of(precision).calibrated:
        raise UsageError(f"precision '{precision}' has no integers that could agree; leave agree out or give precision='int8'")
    return agree(program, formats=tuple(Format), precision=precision, lowering=lowering, device=device or "host", costs=costs)


def as_folded(model: nn.Module | FoldResult, example_inputs: Batch) -> FoldResult:
    """The fold result as it is, or that of a module."""
    from edgefold.export.fold import FoldResult

    return model if isinstance(model, FoldResult) else fold(model, example_inputs)


def as_format(name: Format | str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in list(Format):
        raise unknown_name("format", str(name), list(Format))
    return Format(name)


def as_precision(name: Precision | str) -> Precision:
    """The precision of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in list(Precision):
        raise unknown_name("precision", str(name), list(Precision))
    return Precision(name)


def check_calibration(precision: Precision, *, given: bool) -> None:
    """Refuses calibration data that is missing, or that nothing would use.

    Raises:
        UsageError: see there.
    """
    needed = scheme_of(precision).calibrated
    if needed and not given:
        raise UsageError(f"precision '{precision}' needs calibration data; give some inputs as the model sees them in use")
    if given and not needed:
        raise UsageError(f"precision '{precision}' needs no calibration data; leave it out or give precision='int8'")


def as_output(out: Path, format: Format) -> Path:
    """``out`` with the format's suffix if it has none.

    Raises:
        UsageError: it has another one.
    """
    if not out.suffix:
        return out.with_suffix(format.suffix)
    if out.suffix != format.suffix:
        raise UsageError(f"output '{out}' ends in '{out.suffix}', a file of format '{format}' ends in '{format.suffix}'")
    return out


def check_free(out: Path, *, force: bool) -> None:
    """Refuses an existing output before any work is done.

    Raises:
        OutputError: it exists and ``force`` is not set.
    """
    if out.exists() and not force:
        raise OutputError(f"output '{out}' exists already; choose another name or give --force")
