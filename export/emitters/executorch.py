"""ExecuTorch, with the XNNPACK backend."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from edgefold.artifact import Artifact, Format, atomic_path, sha256_of
from edgefold.export.emitters import metadata
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.emitters.prepare import Prepared, prepare
from edgefold.export.emitters.quiet import converter
from edgefold.export.program import LoweredProgram


class ExecutorchEmitter:
    """Writes one ``.pte`` file."""

    format: ClassVar[Format] = Format.EXECUTORCH

    def emit(self, lowered: LoweredProgram, options: EmitOptions, out: Path) -> Artifact:
        """See `edgefold.export.emitters.base.Emitter.emit`."""
        prepared = prepare(lowered, options, fold_weights=True)
        with converter("ExecuTorch", self.format):
            data = _convert(prepared)
        with atomic_path(out, force=options.force) as temporary:
            temporary.write_bytes(data)
        return Artifact(out, self.format, lowered.precision, sha256_of(out), prepared.inputs, prepared.outputs)


def _convert(prepared: Prepared) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        prepared.export(),
        partitioner=[XnnpackPartitioner()],
        constant_methods={metadata.PTE_METHOD: metadata.encode(prepared.precision, prepared.inputs, prepared.outputs)},
    )
    return bytes(edge.to_executorch().buffer)
