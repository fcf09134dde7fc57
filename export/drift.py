"""The drift map of a quantized network: a probe network for each format, run in its real runtime, compared value by value."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgefold.artifact import Format
from edgefold.batch import Batch, as_tensors
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering, LoweringPlan
from edgefold.export.program import Program, QuantizedProgram
from edgefold.export.verify import Arrays, reference_outputs
from edgefold.quantize.drift import DriftReport, drift_map, expose
from edgefold.runtime import run

REFERENCE = "torch"


def measure_drift(
    program: QuantizedProgram,
    inputs: Batch,
    *,
    formats: Sequence[Format] = tuple(Format),
    lowering: Lowering | str = "auto",
    plans: Mapping[Format, LoweringPlan] | None = None,
    device: str = "host",
    progress: Callable[[], None] = lambda: None,
) -> DriftReport:
    """Where the runtimes, and the fake-quantized torch graph, differ on the same inputs.

    Args:
        program: the quantized network.
        inputs: samples stacked along the first dimension, in torch's layout.
        formats: the runtimes to compare.
        lowering: how layers are computed.
        plans: how each layer of a format is computed, where that is known: then ``lowering`` does not count.
        device: whose costs ``auto`` goes by.
        progress: called after each runtime.

    Raises:
        UnsupportedError: a format cannot express an op.
        RuntimeFailure: a converter or a runtime broke.
    """
    inputs = program.takes(as_tensors(inputs))
    graph, names = expose(program.program.graph)
    probe = Program(graph, program.program.example_inputs, program.program.input_names, tuple(f"{name}_value" for name in names))
    arrays = [tensor.numpy() for tensor in as_tensors(inputs)]
    probed = QuantizedProgram(probe, program.table, program.scheme, program.plan)
    outputs: dict[str, Arrays] = {REFERENCE: reference_outputs(probed, inputs, batch=len(probe.example_inputs[0]))}
    classes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="edgefold-drift-") as folder:
        for format in formats:
            plan = (plans or {}).get(format)
            chosen = lowering if plan is None else {layer.name: layer.choice for layer in plan.layers}
            whole = plan is not None and plan.whole
            lowered = lower(probe, format=format, precision=program.scheme, lowering=chosen, device=device, whole=whole)
            artifact = get_emitter(format).emit(lowered, EmitOptions(), Path(folder) / f"probe{format.suffix}")
            outputs[format.value] = run(artifact, arrays)
            classes[format.value] = numeric_classes(lowered.plan)
            progress()
    return DriftReport(tuple(outputs), len(arrays[0]), drift_map(graph, names, outputs, classes))


def numeric_classes(plan: LoweringPlan) -> dict[str, str]:
    """The numeric class of the chosen lowering of each layer, by module path."""
    return {
        layer.name: candidate.numeric_class.value
        for layer in plan.layers
        for candidate in layer.candidates
        if candidate.lowering is layer.choice
    }
