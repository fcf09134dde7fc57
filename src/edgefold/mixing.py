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
    from edgefold.export.emitters.base import EmitOptions
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.pipeline import Lowerings
    from edgefold.quantize.calibrate import ScaleTable

RANKED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """What a network may lose and take.

    ``max_drop`` is in points (hundredths) of the metric; ``None`` means as near to the float network as ``max_ms`` allows.
    ``max_ms`` is the median on ``device`` in each of ``formats``; ``None`` means any. What follows is that of the files that are
    made in the end: ``ends`` says what theirs look like, and with ``agree`` each layer is computed in one way in all formats.
    """

    max_drop: float | None = None
    max_ms: float | None = None
    formats: tuple[Format, ...] = tuple(Format)
    device: str = "host"
    lowering: Lowerings = "auto"
    bench: BenchOptions | None = None
    agree: bool = False
    ends: Callable[[QuantizedProgram], EmitOptions] | None = None

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
    """What the search found. Metrics are on the evaluation data, ``median_ms`` those of this very mixture in each format."""

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
    from edgefold.quantize.correct import correct_biases
    from edgefold.quantize.graph import module_path
    from edgefold.quantize.mixed import choose
    from edgefold.quantize.rounding import round_by_data
    from edgefold.quantize.sensitivity import analyse
    from edgefold.quantizing import JUDGED

    clock = _Clock(program, budget)
    evaluate = _evaluation(network, program)
    if not clock(frozenset(), lambda: program.table):
        times = clock.median_ms[frozenset()]
        slowest = max(times, key=lambda name: times[name])
        raise CheckError(
            f"with every layer in {program.scheme} the {slowest} file takes {times[slowest]:.3g} ms "
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
    mixed = replace(with_table(program, found.table), float_layers=floats)
    times = clock.median_ms.get(frozenset(found.float_layers), {})
    return mixed, Mixture(floats, found.reference, found.before, found.after, times)


def with_table(program: QuantizedProgram, table: ScaleTable) -> QuantizedProgram:
    """The same network with another table of scales."""
    from edgefold.quantize.calibrate import attach

    return replace(program, program=replace(program.program, graph=attach(program.canonical.graph, table)), table=table)


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
        self.median_ms: dict[frozenset[str], dict[str, float]] = {}  # of each set that was measured, by format

    def __call__(self, floats: frozenset[str], table: Callable[[], ScaleTable]) -> bool:
        """The answer for the layers ``floats``, whose network has the scales ``table``; without ``max_ms`` it is yes."""
        if self._budget.max_ms is None:
            return True
        if floats not in self.median_ms:
            self.median_ms[floats] = self._measure(with_table(self._program, table()))
        return max(self.median_ms[floats].values()) <= self._budget.max_ms

    def _measure(self, candidate: QuantizedProgram) -> dict[str, float]:
        """The medians of the files of a network, written as those that are made in the end."""
        from edgefold.device_bench import BenchOptions, bench
        from edgefold.export.emitters.base import EmitOptions, get_emitter
        from edgefold.export.lower.agree import agree
        from edgefold.export.lower.lower import lower

        budget, scheme, found = self._budget, candidate.scheme, {}
        ends = EmitOptions() if budget.ends is None else budget.ends(candidate)
        program, device, lowering = candidate.program, budget.device, budget.lowering
        agreed = {}
        if budget.agree:
            agreed = agree(program, formats=budget.formats, precision=scheme, lowering=lowering, device=device)
        options = replace(budget.bench or BenchOptions(), processes=3, max_secs=10.0)
        with tempfile.TemporaryDirectory(prefix="edgefold-mix-") as folder:
            for format in budget.formats:
                forms = agreed.get(format, lowering)
                lowered = lower(program, format=format, precision=scheme, lowering=forms, device=device, whole=budget.agree)
                out = Path(folder) / f"mixed{format.suffix}"
                artifact = get_emitter(format).emit(lowered, ends, out)
                found[format.value] = bench(artifact, device, options=options).median_ns / 1e6
        return found
