"""From the folded network to the quantized one: the passes before calibration, the calibration, and the rounding after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from edgefold.artifact import Precision
from edgefold.errors import DataError, UsageError
from edgefold.schemes import DEFAULT_EXPONENT_BITS, scheme_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from edgefold.batch import Batch
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import Program, QuantizedProgram
    from edgefold.preprocess import Preprocessing
    from edgefold.quantize.calibrate import ScaleTable
    from edgefold.quantize.correct import EqualizedPair

JUDGED: Final = 128  # calibration samples by which weights are rounded and biases corrected


@dataclass(frozen=True, slots=True)
class Calibration:
    """The options of `edgefold.pipeline.quantize_model`; see there."""

    observer: str = "auto"
    equalize: bool = False
    exclude: tuple[str, ...] = ()
    pixels: Preprocessing | None = None
    io: Literal["float32", "int8", "uint8"] = "float32"
    exponent_bits: int = DEFAULT_EXPONENT_BITS


def quantize_folded(
    folded: FoldResult,
    calibration: Iterable[Batch] | Tensor | None,
    precision: Precision,
    options: Calibration,
    progress: Callable[[], None],
) -> QuantizedProgram:
    """The quantized network; ``calibration`` is there where, and only where, the precision needs it.

    Raises:
        InputError: see `edgefold.pipeline.quantize_model`.
    """
    from edgefold.batch import samples_like
    from edgefold.export.constants import fold_constants
    from edgefold.export.lower.branches import branches_of
    from edgefold.export.passes.infra import clone, run_passes
    from edgefold.export.passes.integer_activations import INTEGER_ACTIVATIONS
    from edgefold.export.passes.lone_norms import LONE_NORMS
    from edgefold.export.passes.own_ranges import own_ranges_pass
    from edgefold.export.passes.transposed_convs import transposed_convs_pass
    from edgefold.export.program import QuantizedProgram
    from edgefold.quantize import correct
    from edgefold.quantize.calibrate import attach, calibrate
    from edgefold.quantize.graph import layer_nodes
    from edgefold.quantize.joins import join_in_float
    from edgefold.quantize.pixels import PixelInput, absorb
    from edgefold.quantize.rounding import round_by_data
    from edgefold.quantize.scheme import GRIDS

    form, exclude, pixels = scheme_of(precision), options.exclude, options.pixels
    graph = clone(folded.program.graph)
    fold_constants(graph, made=True)
    samples = [] if calibration is None else list(samples_like(calibration, folded.program.example_inputs, "calibration"))
    if calibration is not None and not samples:
        raise DataError("calibration data is empty, expected at least one batch; give some inputs as the model sees them in use")
    pairs: tuple[EqualizedPair, ...] = ()
    if options.equalize:
        graph, pairs = correct.equalize(graph, samples)
    if calibration is None:
        return _rounded(replace(folded.program, graph=graph), folded, precision, exclude, pairs)
    graph, _ = run_passes(graph, (transposed_convs_pass(layer_nodes(graph, exclude)), LONE_NORMS, INTEGER_ACTIVATIONS))
    joins = join_in_float(graph, samples) if form.float_joins and options.io == "float32" and pixels is None else ()
    graph, _ = run_passes(graph, (own_ranges_pass(GRIDS[form.activation_bits]),))
    program = replace(folded.program, graph=graph)
    floats = layer_nodes(program.graph, exclude)
    if pixels is not None and not form.integer_ends:
        raise UsageError(
            f"precision '{precision}' has no 8-bit inputs that could be camera pixels; leave --io uint8 out or give int8"
        )
    camera = None if pixels is None else PixelInput.of(pixels)
    if camera is not None:
        program = replace(program, graph=absorb(program.graph, camera), example_inputs=camera.first(program.example_inputs))
        samples = [camera.first(sample) for sample in samples]
    table = calibrate(
        program.graph,
        samples,
        observer=options.observer,
        branches=branches_of,
        keep_float=floats,
        grid=GRIDS[form.activation_bits],
        progress=progress,
    )
    if precision is Precision.LOG2:
        table = replace(table, exponent_bits=options.exponent_bits)
    table = correct.correct_biases(program.graph, table, samples[:JUDGED])
    if precision is not Precision.LOG2:
        table = round_by_data(program.graph, table, samples[:JUDGED])
    findings = (*joins, *coarse(program.graph, table, samples))
    quantized = replace(program, graph=attach(program.graph, table))
    return QuantizedProgram(
        quantized, table, precision, folded.plan, program, tuple(dict.fromkeys(exclude)), pairs, camera, findings
    )


def coarse(graph: GraphModule, table: ScaleTable, samples: Sequence[tuple[Tensor, ...]]) -> tuple[str, ...]:
    """A sentence for each value that keeps too few integers in the outputs; see `edgefold.quantize.joins.coarse_joins`."""
    from edgefold.quantize.calibrate import annotated
    from edgefold.quantize.joins import coarse_joins

    return coarse_joins(annotated(graph, table), samples)


def _rounded(
    program: Program, folded: FoldResult, precision: Precision, exclude: Sequence[str], pairs: tuple[EqualizedPair, ...]
) -> QuantizedProgram:
    """The network with rounded weights; its activations have no scales."""
    from edgefold.export.passes.infra import run_passes
    from edgefold.export.passes.transposed_convs import TRANSPOSED_NORMS
    from edgefold.export.program import QuantizedProgram
    from edgefold.quantize.calibrate import attach
    from edgefold.quantize.graph import layer_nodes
    from edgefold.quantize.weights import weight_table

    program = replace(program, graph=run_passes(program.graph, (TRANSPOSED_NORMS,))[0])
    table = weight_table(program.graph, layer_nodes(program.graph, exclude), dynamic=scheme_of(precision).integer)
    rounded = replace(program, graph=attach(program.graph, table))
    return QuantizedProgram(rounded, table, precision, folded.plan, program, tuple(dict.fromkeys(exclude)), pairs)
