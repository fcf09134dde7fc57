"""TFLite, for LiteRT and its predecessors.

The LiteRT converter writes the flatbuffer; what it leaves to be desired (names, ends, leftovers) is edited in the flatbuffer
itself. Operator versions stay at what tflite-runtime 2.14 (2023) reads, but for linear layers in ``int8-dynamic``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgefold.artifact import Artifact, Format, Precision, TensorSpec, atomic_path, sha256_of
from edgefold.export.emitters import metadata
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.emitters.batches import check_batches
from edgefold.export.emitters.integer_only import check_integer_only
from edgefold.export.emitters.prepare import Prepared, add_values, prepare
from edgefold.export.emitters.quiet import converter
from edgefold.export.passes.hold_joins import HOLD_JOINS
from edgefold.export.passes.hold_layers import HOLD_LAYERS
from edgefold.export.passes.hold_moves import HOLD_MOVES
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.requantize import HOLD_GRIDS
from edgefold.export.passes.subtract_constants import SUBTRACT_CONSTANTS
from edgefold.export.passes.tflite_batch import open_batch
from edgefold.export.passes.tflite_ends import check_ends, name_ends, set_metadata
from edgefold.export.passes.tflite_float_transposes import FLOAT_TRANSPOSES
from edgefold.export.passes.tflite_io import convert_ends
from edgefold.export.passes.tflite_model import dump, load
from edgefold.export.passes.tflite_pipeline import pipeline
from edgefold.export.passes.uneven_biases import UNEVEN_BIASES
from edgefold.export.program import LoweredProgram
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    from litert_torch.quantize.quant_config import QuantConfig


class TfliteEmitter:
    """Writes one ``.tflite`` file."""

    format: ClassVar[Format] = Format.TFLITE

    def emit(self, lowered: LoweredProgram, options: EmitOptions, out: Path) -> Artifact:
        """See `edgefold.export.emitters.base.Emitter.emit`."""
        prepared = prepare(lowered, options, fold_weights=False)
        if scheme_of(lowered.precision).calibrated:
            prepared = replace(prepared, graph=run_passes(prepared.graph, (UNEVEN_BIASES, HOLD_LAYERS))[0])
        if scheme_of(lowered.precision).activation_bits == 16:
            add_values(prepared.graph, prepared.example_inputs)
            prepared = replace(prepared, graph=run_passes(prepared.graph, (SUBTRACT_CONSTANTS, HOLD_MOVES))[0])
        elif scheme_of(lowered.precision).calibrated:
            prepared = replace(prepared, graph=run_passes(prepared.graph, (HOLD_GRIDS, HOLD_JOINS))[0])
        with converter("litert_torch", self.format):
            data = _convert(prepared)
        inputs, outputs = (tuple(_without_64_bits(spec) for spec in specs) for specs in (prepared.inputs, prepared.outputs))
        # Reshapes of columns to channels would fix the batch.
        passes = pipeline(lowered.precision, prepared.weights, wide=lowered.plan.wide and not options.dynamic_batch)
        model, _ = run_passes(load(data), passes)
        if options.dynamic_batch:
            open_batch(model)
        convert_ends(model, inputs, outputs)
        if scheme_of(lowered.precision).activation_bits == 8:
            model, _ = run_passes(model, (FLOAT_TRANSPOSES,))
        name_ends(model, inputs, outputs)
        text = metadata.encode(lowered.precision, inputs, outputs, random_calibration=options.random_calibration)
        set_metadata(model, metadata.KEY, text, metadata.producer())
        check_ends(model, inputs, outputs)
        with atomic_path(out, force=options.force) as temporary:
            temporary.write_bytes(dump(model))
            check_integer_only(temporary, lowered.precision)
            artifact = Artifact(temporary, self.format, lowered.precision, sha256_of(temporary), inputs, outputs)
            check_batches(artifact, prepared.trial)
        return replace(artifact, path=out)


def _convert(prepared: Prepared) -> bytes:
    import litert_torch

    for module in prepared.graph.modules():
        module.training = False
    result = litert_torch.convert(prepared.graph, prepared.example_inputs, quant_config=_quantization(prepared.precision))
    data: bytes = result._exporter.to_bytes()
    return data


def _quantization(precision: Precision) -> QuantConfig | None:
    """What makes the converter turn quantize/dequantize pairs into integer operators; the scales are those in the graph."""
    if not scheme_of(precision).calibrated:
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    static = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(static))


def _without_64_bits(spec: TensorSpec) -> TensorSpec:
    """The converter narrows 64-bit tensors, which phones' accelerators do not take."""
    narrow = {"int64": "int32", "float64": "float32"}
    return replace(spec, dtype=narrow.get(spec.dtype, spec.dtype))
