"""The process that computes the cells of one model: ``python -m edgefold.matrix.worker < JOB.json``.

The model is loaded, folded and calibrated here, once for all of its cells. Each cell is then computed in a process of its own,
forked from this one: it is written, verified and measured there, under its own limit of memory, and what it leaves behind ends
with it. Converters and runtimes are only ever loaded in those. Where there is no fork, this process gets one cell only.

On stdout goes one JSON line at each new stage (``{"stage": …}``) and one after each cell: ``{"cell": index, "result": …}``, or
``{"cell": index, "died": exit code, "peak_bytes": …}`` where its process ended without a result. What libraries print goes to
stderr. If this process itself dies, its parent starts another with the cells that are left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgefold.artifact import Precision
from edgefold.errors import EdgefoldError
from edgefold.matrix.cells import FORKS, Cell, CellOptions, CellResult, cell_from, failed
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.report.content import Variant

_NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "ran out of memory", "MemoryError")

T = TypeVar("T")
Say = Callable[[dict[str, Any]], None]


@dataclass
class _Stages:
    """Tells the parent, and remembers, at which stage the work is."""

    say: Say
    current: str = "load"

    def __call__(self, name: str) -> None:
        self.current = name
        self.say({"stage": name})

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `edgefold.network.Progress.stage`."""
        self(name)

    def step(self) -> None:
        """See `edgefold.network.Progress.step`."""


@dataclass
class _Model:
    """One model with what was made of it so far. What failed once fails again with the same words, at once."""

    cell: Cell
    options: CellOptions
    stages: _Stages
    _made: dict[str, Any] = field(default_factory=dict)

    def network(self) -> Network:
        return self._once("load", self._load)  # type: ignore[no-any-return]  # of _load

    def folded(self) -> FoldResult:
        from edgefold.pipeline import fold

        network = self.network()
        return self._once("fold", lambda: fold(network.module, network.example_inputs))  # type: ignore[no-any-return]  # of fold

    def quantized(self, precision: Precision) -> tuple[dict[Precision, QuantizedProgram], float | None]:
        """The program, by its precision (none for a float one), and its SQNR against the float network in dB."""
        folded = self.folded()
        return self._once(f"calibrate {precision}", lambda: self._quantize(folded, precision))  # type: ignore[no-any-return]  # of _quantize

    def _once(self, stage: str, make: Callable[[], Any]) -> Any:
        if stage not in self._made:
            self.stages(stage.split()[0])
            try:
                self._made[stage] = make()
            except EdgefoldError as error:
                self._made[stage] = error
        found = self._made[stage]
        if isinstance(found, EdgefoldError):
            self.stages.current = stage.split()[0]
            raise found
        return found

    def _load(self) -> Network:
        import torch

        from edgefold.batch import as_tensors
        from edgefold.shipping import named_network
        from edgefold.variants import seeded_inputs

        torch.manual_seed(0)  # random weights are the same in every cell
        network = named_network(self.cell.entry.name, kwargs=self.cell.entry.kwargs, trust=self.options.trust)
        if network.calibration is None:
            inputs = seeded_inputs(as_tensors(network.example_inputs), self.options.samples)
            return replace(network, calibration=[inputs], random_calibration=True)
        if isinstance(network.calibration, torch.Tensor):
            return replace(network, calibration=network.calibration[: self.options.samples])
        return network

    def _quantize(self, folded: FoldResult, precision: Precision) -> tuple[dict[Precision, QuantizedProgram], float | None]:
        from edgefold.export.verify import reference_outputs, sqnr_db
        from edgefold.network import ShipOptions
        from edgefold.variants import quantize_all, seeded_inputs

        network = self.network()
        programs, _ = quantize_all(network, folded, ShipOptions(precisions=(precision,)), self.stages)
        if precision not in programs:
            return programs, None
        example = folded.program.example_inputs
        inputs = seeded_inputs(example, self.options.parity_samples)
        if network.evaluation is not None:
            inputs = tuple(tensor[: self.options.parity_samples] for tensor in network.evaluation.inputs)
        exact, found = (
            reference_outputs(net, inputs, batch=len(example[0])) for net in (folded.program.graph, programs[precision])
        )
        signals = [sqnr_db(a, b) for a, b in zip(exact, found, strict=True)]
        return programs, min((signal for signal in signals if signal is not None), default=None)


def prepare(model: _Model, cell: Cell) -> None:
    """What the cells of a model share: the network, folded, and calibrated for the cell's precision.

    Raises:
        EdgefoldError: at the stage that ``model.stages`` tells.
    """
    model.quantized(cell.precision)


def compute(model: _Model, cell: Cell, key: str) -> CellResult:
    """One cell, from the network to a verified file.

    Raises:
        EdgefoldError: at the stage that ``model.stages`` tells.
    """
    from edgefold.device_bench import BenchOptions
    from edgefold.network import ShipOptions
    from edgefold.variants import emit_all, measure_all, verify_all

    network, folded = model.network(), model.folded()
    programs, quantization_db = model.quantized(cell.precision)
    settings = model.options
    options = ShipOptions(
        formats=(cell.format,),
        precisions=(cell.precision,),
        device=settings.device,
        lowering=settings.lowering,  # type: ignore[arg-type]  # checked by the caller
        parity_samples=settings.parity_samples,
        bench=BenchOptions(threads=settings.threads),
        timing=False,  # other cells run at the same time
    )
    with tempfile.TemporaryDirectory(prefix="edgefold-cell-") as folder:
        variants = emit_all(folded, programs, options, Path(folder), model.stages)
        if variants[0].failure is None:
            variants, _, verified = verify_all(variants, network, folded, programs, options, model.stages)
            if settings.bench and variants[0].failure is None:
                variants = measure_all(variants, verified, options, model.stages)
        size = None if variants[0].artifact is None else variants[0].artifact.size_bytes
    return _result(
        variants[0], cell, key, size, quantization_db, network.random_calibration and scheme_of(cell.precision).calibrated
    )


def _result(
    variant: Variant, cell: Cell, key: str, size: int | None, quantization_db: float | None, random_calibration: bool
) -> CellResult:
    from edgefold.report.table import problem

    outputs = () if variant.parity is None else variant.parity.outputs
    failure, artifact, measured = variant.failure, variant.artifact, variant.measurement
    check = "" if variant.passed else problem(variant)
    return CellResult(
        key=key,
        model=cell.entry.label,
        format=cell.format,
        precision=cell.precision,
        passed=variant.passed,
        stage=failure.stage if failure else check.partition(":")[0],
        error=failure.error if failure else "CheckError" if check else "",
        message=" ".join((failure.message if failure else check.partition(": ")[2]).split()),
        size_bytes=size,
        sha256=None if artifact is None else artifact.sha256,
        max_relative_error=max((output.max_relative_error for output in outputs), default=None),
        sqnr_db=min((output.sqnr_db for output in outputs if output.sqnr_db is not None), default=None),
        quantization_db=quantization_db,
        accuracy=None if variant.accuracy is None else variant.accuracy.value,
        accuracy_reference=None if variant.accuracy is None else variant.accuracy.reference,
        median_ns=None if measured is None else measured.median_ns,
        interval_ns=None if measured is None else measured.interval_ns,
        random_calibration=random_calibration,
    )


def _guarded(model: _Model, cell: Cell, key: str, work: Callable[[], T]) -> T | CellResult:
    """What ``work`` gives, or what went wrong as a result."""
    try:
        return work()
    except EdgefoldError as error:
        kind = "Memory" if _is_memory(error) else type(error).__name__
        return failed(cell, key, model.stages.current, kind, str(error))
    except Exception as error:  # a fault of ours or of a library: it belongs into the table, and the next cell is due
        kind = "Memory" if _is_memory(error) else "Crash"
        return failed(cell, key, model.stages.current, kind, f"{type(error).__name__}: {error}"[:500])


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _limit_memory(limit: int) -> None:
    """Caps the private memory of this process and of those that it starts, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _peak_bytes(*, children: bool = True) -> int:
    """The most memory that this process had, or one of those that it started and that ended."""
    try:
        import resource
    except ImportError:
        return 0
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    return max(rss_bytes(resource.getrusage(who)) for who in whose)


def rss_bytes(usage: Any) -> int:
    """The most memory of what the system tells of a process that ended."""
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def in_own_process(work: Callable[[], None]) -> tuple[int, int]:
    """Does ``work`` in a forked process; its exit code (the negative number of a signal that ended it), and its peak in bytes.

    Only PyTorch's threads may be running: the forked process does without them.
    """
    import torch

    gc.collect()
    gc.freeze()  # what is shared is not touched by the collector of the other process, so its pages stay shared
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about the threads
        pid = os.fork()
    if pid:
        _, status, usage = os.wait4(pid, 0)
        return os.waitstatus_to_exitcode(status), rss_bytes(usage)
    code = 1
    try:
        torch.set_num_threads(1)  # the others were left behind
        work()
        code = 0
    except BaseException:  # nothing of this process may go on as if it were the other
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Reads a job, computes its cells."""
    job = json.load(sys.stdin)
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what converters print is no result

    def say(line: dict[str, Any]) -> None:
        stream.write(f"\n{json.dumps(line)}\n")  # a cell's process that died may have left half a line
        stream.flush()

    _limit_memory(job["memory_bytes"])
    cells = [cell_from(cell) for cell in job["cells"]]
    model = _Model(cells[0], CellOptions(**job["options"]), _Stages(say))
    for index, (cell, key) in enumerate(zip(cells, job["keys"], strict=True)):
        _one_cell(model, cell, key, index, say)


def _one_cell(model: _Model, cell: Cell, key: str, index: int, say: Say) -> None:
    """Tells the result of one cell, or how its process ended."""
    from edgefold.results import to_dict

    start = time.monotonic()

    def tell(found: CellResult, peak_bytes: int) -> None:
        done = replace(
            found,
            time_s=round(time.monotonic() - start, 1),
            peak_rss_bytes=peak_bytes,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        say({"cell": index, "result": to_dict(done)})

    lacking = _guarded(model, cell, key, lambda: prepare(model, cell))
    if lacking is not None:
        tell(lacking, _peak_bytes(children=False))  # the children were other cells
        return

    def work() -> None:
        found = _guarded(model, cell, key, lambda: compute(model, cell, key))
        tell(found, _peak_bytes())

    if not FORKS:
        work()
        return
    code, peak_bytes = in_own_process(work)
    if code:
        say({"cell": index, "died": code, "peak_bytes": peak_bytes})


if __name__ == "__main__":
    main()
