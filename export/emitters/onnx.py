"""ONNX, for ONNX Runtime.

Opset 18 is the one that the exporter's own op library is written in, so nothing passes through a version converter; it has
per-channel QuantizeLinear/DequantizeLinear (since opset 13) and, with IR version 8, is read by every ONNX Runtime since 1.14
(January 2023), the mobile packages included.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgefold.artifact import Artifact, Format, atomic_path, sha256_of
from edgefold.errors import RuntimeFailure, UnsupportedError
from edgefold.export.emitters import metadata
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.emitters.batches import check_batches
from edgefold.export.emitters.integer_only import check_integer_only
from edgefold.export.emitters.prepare import BATCH, Prepared, prepare
from edgefold.export.emitters.quiet import converter
from edgefold.export.lower.tables.cache import HOST
from edgefold.export.program import LoweredProgram
from edgefold.runtime.worker_x86 import has_vnni

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 18
IR_VERSION = 8
_PROTOBUF_LIMIT = 2**31 - 1


class OnnxEmitter:
    """Writes one ``.onnx`` file, weights included."""

    format: ClassVar[Format] = Format.ONNX

    def emit(self, lowered: LoweredProgram, options: EmitOptions, out: Path) -> Artifact:
        """See `edgefold.export.emitters.base.Emitter.emit`."""
        prepared = prepare(lowered, options, fold_weights=True)
        with converter("torch.onnx", self.format):
            model = _convert(prepared)
        exact_products = lowered.plan.device == HOST and not options.portable and has_vnni()
        _finish(model, prepared, exact_products=exact_products, agreeing=lowered.plan.whole)
        with atomic_path(out, force=options.force) as temporary:
            _write(model, temporary)
            check_integer_only(temporary, lowered.precision)
            artifact = Artifact(
                temporary, self.format, lowered.precision, sha256_of(temporary), prepared.inputs, prepared.outputs
            )
            check_batches(artifact, prepared.trial)
        return replace(artifact, path=out)


def _convert(prepared: Prepared) -> ir.Model:
    import torch

    program = torch.onnx.export(
        prepared.export(),
        dynamo=True,
        opset_version=OPSET,
        input_names=[spec.name for spec in prepared.inputs],
        output_names=[spec.name for spec in prepared.outputs],
        verbose=False,
    )
    assert program is not None
    return program.model


def _finish(model: ir.Model, prepared: Prepared, *, exact_products: bool, agreeing: bool) -> None:
    from edgefold.export.passes.infra import run_passes
    from edgefold.export.passes.onnx_fixed_point_add import FIXED_POINT_ADDS
    from edgefold.export.passes.onnx_io import convert_ends
    from edgefold.export.passes.onnx_pipeline import CLEAN, pipeline
    from edgefold.export.passes.onnx_reciprocal import MULTIPLY_INPUTS
    from edgefold.export.passes.onnx_unsigned import OWN_ZERO_POINTS, can_saturate

    run_passes(model, pipeline(prepared.precision, exact_products=exact_products))
    needs_vnni = exact_products and can_saturate(model)
    convert_ends(model, prepared.inputs, prepared.outputs)
    run_passes(model, (MULTIPLY_INPUTS, FIXED_POINT_ADDS, *CLEAN) if agreeing else CLEAN)
    if needs_vnni:
        run_passes(model, (OWN_ZERO_POINTS,))
    if prepared.dynamic_batch:
        _name_batch(model)
    model.ir_version = IR_VERSION
    model.producer_name, _, model.producer_version = metadata.producer().partition(" ")
    model.graph.name = "edgefold"
    model.metadata_props[metadata.KEY] = metadata.encode(
        prepared.precision,
        prepared.inputs,
        prepared.outputs,
        needs_vnni=needs_vnni,
        random_calibration=prepared.random_calibration,
    )
    for kind, values, specs in (
        ("input", model.graph.inputs, prepared.inputs),
        ("output", model.graph.outputs, prepared.outputs),
    ):
        found = tuple(_declared(value) for value in values)
        expected = tuple((spec.name, spec.shape, spec.dtype) for spec in specs)
        if found != expected:
            raise RuntimeFailure(f"ONNX file declares {kind}s {found}, expected {expected}; please report this bug")


def _name_batch(model: ir.Model) -> None:
    """Give the open dimension its name; shapes inside are left to the runtime, which infers them from the ends."""
    import onnx_ir as ir

    for node in model.graph:
        for value in node.outputs:
            value.shape = None if value not in model.graph.outputs else value.shape
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([size if isinstance(size, int) else BATCH for size in value.shape.dims])


def _declared(value: ir.Value) -> tuple[str | None, tuple[int, ...], str]:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape.dims)
    return value.name, shape, value.dtype.numpy().name


def _write(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _PROTOBUF_LIMIT:
        raise UnsupportedError(f"weights take {size} bytes, more than the 2 GB that one ONNX file holds; use another format")
    ir.save(model, path)
