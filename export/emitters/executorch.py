"""ExecuTorch, with the XNNPACK backend.

FP16 means that XNNPACK computes in float16, which is fast on CPUs that have it; its format holds conv weights in float32 all the
same, so the file does not shrink.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgefold.artifact import Artifact, Format, Precision, atomic_path, sha256_of
from edgefold.errors import UnsupportedError
from edgefold.export.emitters import metadata
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.emitters.batches import check_batches
from edgefold.export.emitters.integer_only import check_integer_only
from edgefold.export.emitters.prepare import Prepared, prepare
from edgefold.export.emitters.quiet import converter
from edgefold.export.passes.bare_pads import BARE_PADS
from edgefold.export.passes.copied_moves import COPIED_MOVES
from edgefold.export.passes.float_transposes import FLOAT_TRANSPOSES
from edgefold.export.passes.half_compute import HALF_COMPUTE
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.io_types import integer_ends
from edgefold.export.passes.module_names import STACK_AS_PATH, path_of
from edgefold.export.passes.one_rounding import ONE_ROUNDING
from edgefold.export.passes.own_storages import OWN_STORAGES
from edgefold.export.program import LoweredProgram
from edgefold.schemes import scheme_of

# Functions of one value, whose partitioner configurations are named so.
_TABLES: Final = (
    "Abs",
    "Cos",
    "Exp",
    "Gelu",
    "Hardswish",
    "LeakyReLU",
    "Pow",
    "ReciprocalSquareRoot",
    "Sigmoid",
    "Sin",
    "SquareRoot",
    "Tanh",
)


class ExecutorchEmitter:
    """Writes one ``.pte`` file."""

    format: ClassVar[Format] = Format.EXECUTORCH

    def emit(self, lowered: LoweredProgram, options: EmitOptions, out: Path) -> Artifact:
        """See `edgefold.export.emitters.base.Emitter.emit`."""
        prepared = prepare(lowered, options, fold_weights=True, run_time_scales=True)
        if lowered.precision is Precision.FP16:
            graph, _ = run_passes(prepared.graph, (HALF_COMPUTE, STACK_AS_PATH))
            prepared = replace(prepared, graph=graph)
        if scheme_of(lowered.precision).calibrated:
            graph, _ = run_passes(prepared.graph, (ONE_ROUNDING, BARE_PADS, COPIED_MOVES))
            prepared = replace(prepared, graph=graph)
        prepared = _with_integer_ends(prepared)
        if scheme_of(lowered.precision).calibrated:
            prepared = replace(prepared, graph=run_passes(prepared.graph, (FLOAT_TRANSPOSES,))[0])
        prepared = replace(prepared, graph=run_passes(prepared.graph, (OWN_STORAGES,))[0])
        with converter("ExecuTorch", self.format):
            data = _convert(prepared)
        with atomic_path(out, force=options.force) as temporary:
            temporary.write_bytes(data)
            check_integer_only(temporary, lowered.precision)
            artifact = Artifact(
                temporary, self.format, lowered.precision, sha256_of(temporary), prepared.inputs, prepared.outputs
            )
            check_batches(artifact, prepared.trial)
        return replace(artifact, path=out)


def _with_integer_ends(prepared: Prepared) -> Prepared:
    """ExecuTorch has the ends that the graph has."""
    graph, _ = run_passes(prepared.graph, (integer_ends(prepared.inputs, prepared.outputs),))
    examples = tuple(
        tensor if spec.scale is None else torch.zeros(tensor.shape, dtype=getattr(torch, spec.dtype))
        for tensor, spec in zip(prepared.example_inputs, prepared.inputs, strict=True)
    )
    return replace(prepared, graph=graph, example_inputs=examples)


def _convert(prepared: Prepared) -> bytes:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        prepared.export(),
        partitioner=[_partitioner()],
        constant_methods={metadata.PTE_METHOD: ""},
        # The check compares sizes with those of the example, and makes an open one a constant by that.
        compile_config=EdgeCompileConfig(_check_ir_validity=not prepared.dynamic_batch),
    )
    if prepared.capacity is not None:
        _check_open(edge.exported_program(), prepared.capacity)
    text = metadata.encode(
        prepared.precision,
        prepared.inputs,
        prepared.outputs,
        _modules(edge.exported_program()),
        random_calibration=prepared.random_calibration,
    )
    # Handles exist only now, and constant methods are given before.
    edge._config_methods[metadata.PTE_METHOD] = text
    return bytes(edge.to_executorch().buffer)


def _check_open(program: ExportedProgram, capacity: int) -> None:
    """That the converter left the batch open, with room for as many samples as were asked for."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            size = node.meta["val"].shape[0]
            room = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if room is None or room.upper < capacity:
                found = f"makes it {size}" if room is None else f"leaves room for {room.upper} samples, expected {capacity}"
                raise UnsupportedError(
                    f"the batch size cannot be left open in {Format.EXECUTORCH}: its converter {found}; "
                    "choose another --max-batch, or leave --dynamic-batch out"
                )


def _partitioner() -> Any:
    """XNNPACK's, with what its runtime can do and its partitioner does not ask for.

    It takes a bilinear resize of an open batch (the backend needs a fixed height and width only), padding of 8-bit integers with
    any value, and functions of 8-bit integers that the runtime looks up in a table.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config import generic_node_configs as configs
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    def check(self: Any, node: Node, ep: ExportedProgram) -> bool:
        fixed = all(isinstance(size, int) for size in node.meta["val"].shape[1:])
        return fixed and bool(self.check_common_constraints(node, ep))

    def both(_: Any) -> list[Any]:
        return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    own: dict[Any, Any] = {
        configs.UpsampleBilinear2dConfig: type("Resize", (configs.UpsampleBilinear2dConfig,), {"check_constraints": check})
    }
    for kind in (configs.ConstantPadConfig, *(getattr(configs, f"{name}Config") for name in _TABLES)):
        own[kind] = type(kind.__name__, (kind,), {"supported_precision_types": both})
    return XnnpackPartitioner([own.get(kind, kind) for kind in ALL_PARTITIONER_CONFIGS])


def _modules(program: ExportedProgram) -> dict[int, str]:
    """Debug handle to module path, of what the backend computes and of what is left outside."""
    graphs = [program.graph, *(part.original_module.graph for _, part in program.graph_module.named_children())]
    found = {}
    for graph in graphs:
        for node in graph.nodes:
            handle, path = node.meta.get("debug_handle"), path_of(node)
            if handle is not None and path and not str(node.name).startswith("quantized_decomposed"):
                found[int(handle)] = path
    return dict(sorted(found.items()))
