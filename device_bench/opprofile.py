"""Where the time of an inference goes: the ops of a model with the PyTorch modules that they come from.

A pass of its own, since looking at ops slows them down: the shares count, not the sum. ONNX Runtime writes a trace, ExecuTorch an
ETDump, LiteRT has a profiler (which tflite-runtime lacks); `optrace` reads them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefold.artifact import Artifact, Format
from edgefold.device_bench.cases import GRACE_S, PROFILE_JOB, Case, make_case
from edgefold.device_bench.inspection import work_by_name, work_of
from edgefold.device_bench.launch import Launcher, Launchers, Worker
from edgefold.device_bench.method import START_S, PlacedCase, placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.optrace import Row, read_etdump, read_litert_trace, read_ort_trace, with_work
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.base import Runner
from edgefold.runtime.protocol import read_answer


@dataclass(frozen=True, slots=True)
class OpTime:
    """One op. ``module`` is the path of the PyTorch module, empty where the file does not say; ``share`` is of the sum of all
    ops. ``macs`` and ``moved_bytes`` (inputs, weights and outputs, each once) are 0 where they are not known."""

    name: str
    op: str
    module: str
    ns: int
    share: float
    macs: int = 0
    moved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OpProfile:
    """The ops of one artifact in the order of execution."""

    artifact: str
    artifact_sha256: str
    format: Format
    runtime: str
    device: str
    ops: tuple[OpTime, ...]
    emulated: bool = False  # the shares are then those of no real device

    @property
    def slowest(self) -> tuple[OpTime, ...]:
        """The ops by their time, the slowest first."""
        return tuple(sorted(self.ops, key=lambda op: op.ns, reverse=True))


def profile(
    artifact: Artifact | Path | str,
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
) -> OpProfile:
    """The times of the ops of an artifact on a device.

    Raises:
        InputError: the file, the options or the device's name cannot be used.
        RuntimeFailure: the runtime crashed, refused the file, or does not tell the times of ops.
        DeviceError: the device cannot be reached, or has no runtime.
    """
    options = options or BenchOptions()
    case = make_case(artifact, seed=options.seed)
    with open_runner(device, ssh_config=ssh_config) as runner:
        return profile_case(case, runner, Launchers(runner, worker).of(case.format), options)


def profile_case(case: Case, runner: Runner, launcher: Launcher, options: BenchOptions) -> OpProfile:
    """The same for a case and an open runner."""
    with placed(case, runner, launcher, options) as place, tempfile.TemporaryDirectory(prefix="edgefold-") as local:
        done = runner.run(launcher.argv(place.folder, PROFILE_JOB), timeout_s=options.max_secs + GRACE_S + START_S)
        answer = read_answer(done.returncode, done.stdout, done.stderr, model=case.name, format=case.format)
        rows = _rows(answer, place, Path(local) / "trace")
    total = sum(row.ns for row in rows) or 1
    ops = tuple(OpTime(row.name, row.op, row.module, round(row.ns), row.ns / total, row.macs, row.moved_bytes) for row in rows)
    return OpProfile(case.name, case.sha256, case.format, answer["runtime"], runner.url, ops, emulated=runner.info().emulated)


def _rows(answer: dict[str, Any], place: PlacedCase, local: Path) -> list[Row]:
    """The ops in a worker's answer, or in the file that it names."""
    model = place.case.path
    if "ort_trace" in answer:
        place.runner.pull(f"{place.folder}/{answer['ort_trace']}", local)
        return read_ort_trace(local, work_by_name(model))
    if "etdump" in answer:
        place.runner.pull(f"{place.folder}/{answer['etdump']}", local)
        return with_work(read_etdump(local), work_of(model))
    return with_work(read_litert_trace(answer["ops"]), work_of(model))
