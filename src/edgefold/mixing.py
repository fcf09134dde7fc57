"""Mixed precision for a network that ships: which layers stay in float so that accuracy and latency are within their budgets.

The search is `edgefold.quantize.mixed`; here are what it asks: the metric on the evaluation data, and the latency on the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import Format
from edgefold.errors import CheckError, DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from edgefold.device_bench import BenchOptions
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.pipeline import Lowerings
    from edgefold.quantize.calibrate import ScaleTable

RANKED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """What a network may lose and take.

    ``max_drop`` is in points (hundredths) of the metric; ``None`` means as near to the float network as ``max_ms`` allows.
    ``max_ms`` is the median on ``device`` in each of ``formats``; ``None`` means any. ``portable`` is that of the files.
    """

    max_drop: float | None = None
    max_ms: float | None = None
    formats: tuple[Format, ...] = tuple(Format)
    device: str = "host"
    lowering: Lowerings = "auto"
    bench: BenchOptions | None = None
    portable: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--max-drop", self.max_drop), ("--max-ms", self.max_ms)):
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} is {value:g}, expected 0 or more")

    @property
    def given(self) -> bool:
        """Whether there is anything to keep to."""
        return self.max_drop is not None or self.max_ms is not None


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the search found. Metrics are on the evaluation data; ``median_ms`` are those of the last formats measured."""

    float_layers: tuple[str, ...]  # module paths
    reference: float
    before: float
    after: float
    median_ms: dict[str, float]


def mix(
    program: QuantizedProgram,
    network: Network,
    samples: Sequence[tuple[Tensor, ...]],
    budget: Budget,
    *,
    progress: Callable[[], None] = lambda: None,
) -> tuple[QuantizedProgram, Mixture]:
    """Leaves the fewest layers in float with which the network is within its budget.

    Args:
        program: the calibrated network; its scales are kept for the layers that stay in INT8.
        network: brings the evaluation data and the metric.
        samples: calibration inputs, to rank the layers.
        budget: what it may lose and take.
        progress: called after each evaluation.

    Raises:
        DataError: there is no evaluation data.
        CheckError: the budget cannot be met.
    """
    from edgefold.export.program import Program
    from edgefold.pipeline import JUDGED
    from edgefold.quantize.calibrate import attach
    from edgefold.quantize.correct import correct_biases
    from edgefold.quantize.graph import module_path
    from edgefold.quantize.mixed import choose
    from edgefold.quantize.rounding import round_by_data
    from edgefold.quantize.sensitivity import analyse

    clock = _Clock(program, budget)
    evaluate = _evaluation(network, program)
    if budget.max_ms is not None and not clock(frozenset()):
        slowest = max(clock.median_ms, key=lambda name: clock.median_ms[name])
        raise CheckError(
            f"with every layer in {program.scheme} the {slowest} file takes {clock.median_ms[slowest]:.3g} ms "
            f"on {budget.device}, expected at most {budget.max_ms:g} ms; give a larger --max-ms or a smaller network"
        )
    graph = program.canonical.graph
    judged = [program.takes(sample) for sample in samples[:: max(1, len(samples) // RANKED_SAMPLES)][:RANKED_SAMPLES]]
    sensitivity = analyse(graph, program.table, judged)
    used = [program.takes(sample) for sample in samples[:JUDGED]]

    def finish(table: ScaleTable) -> ScaleTable:
        corrected = correct_biases(graph, table, used)
        return corrected if table.exponent_bits else round_by_data(graph, corrected, used)

    found = choose(
        graph,
        program.table,
        sensitivity,
        evaluate,
        max_drop=budget.max_drop,
        finish=finish,
        fits=clock,
        progress=progress,
    )
    names = {node.name: module_path(node) for node in graph.graph.nodes}
    floats = tuple(dict.fromkeys((*program.float_layers, *(names[node] for node in found.float_layers))))
    mixed = replace(
        program,
        program=Program(
            attach(graph, found.table),
            program.program.example_inputs,
            program.program.input_names,
            program.program.output_names,
        ),
        table=found.table,
        float_layers=floats,
    )
    return mixed, Mixture(floats, found.reference, found.before, found.after, clock.median_ms)


def _evaluation(network: Network, program: QuantizedProgram) -> Callable[[GraphModule], float]:
    from edgefold.export.verify import reference_outputs, top1

    evaluation = network.evaluation
    if evaluation is None:
        raise DataError(
            f"--max-drop and --max-ms need labelled images, and model '{network.name}' brings none; give --evaluation PATH"
        )
    metric = network.metric or (lambda outputs, labels: top1(outputs[0], labels))
    inputs, batch = program.takes(evaluation.inputs), len(program.program.example_inputs[0])

    def evaluate(graph: GraphModule) -> float:
        return metric(reference_outputs(graph, inputs, batch=batch), evaluation.labels)

    return evaluate


class _Clock:
    """Whether the network with some layers in float is within ``max_ms`` in every format; asked once for each set of layers."""

    def __init__(self, program: QuantizedProgram, budget: Budget) -> None:
        self._program, self._budget = program, budget
        self._known: dict[frozenset[str], bool] = {}
        self.median_ms: dict[str, float] = {}

    def __call__(self, floats: frozenset[str]) -> bool:
        """The answer; without ``max_ms`` it is yes."""
        if self._budget.max_ms is None:
            return True
        if floats not in self._known:
            self._known[floats] = self._measure(floats, self._budget.max_ms)
        return self._known[floats]

    def _measure(self, floats: frozenset[str], max_ms: float) -> bool:
        from edgefold.device_bench import BenchOptions, bench
        from edgefold.export.emitters.base import EmitOptions, get_emitter
        from edgefold.export.lower.lower import lower
        from edgefold.export.program import Program
        from edgefold.quantize.calibrate import attach, without

        budget, source = self._budget, self._program.program
        graph = self._program.canonical.graph
        attached = attach(graph, without(self._program.table, graph, floats))
        candidate = Program(attached, source.example_inputs, source.input_names, source.output_names)
        options = replace(budget.bench or BenchOptions(), processes=3, max_secs=10.0)
        with tempfile.TemporaryDirectory(prefix="edgefold-mix-") as folder:
            for format in budget.formats:
                lowered = lower(
                    candidate, format=format, precision=self._program.scheme, lowering=budget.lowering, device=budget.device
                )
                out = Path(folder) / f"mixed{format.suffix}"
                artifact = get_emitter(format).emit(lowered, EmitOptions(portable=budget.portable), out)
                self.median_ms[format.value] = bench(artifact, budget.device, options=options).median_ns / 1e6
        return max(self.median_ms.values()) <= max_ms
