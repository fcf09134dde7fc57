"""Measures an artifact on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgefold.artifact import Artifact
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.gate import ThermalGate
from edgefold.device_bench.inspection import fallback_ops
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.method import measure, placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.base import Runner
from edgefold.results import Measurement
from edgefold.runtime.session import execute, from_file

Array = NDArray[Any]


def bench(
    artifact: Artifact | Path | str,
    device: str = "host",
    threads: int = 1,
    options: BenchOptions | None = None,
    *,
    inputs: Sequence[Array] | None = None,
    reference: Sequence[Array] | None = None,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    keep: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Measurement:
    """The latency and memory of one artifact on one device.

    Args:
        artifact: an artifact or the path of any .onnx, .tflite or .pte file.
        device: ``host``, ``ssh://user@board[:port]``, ``adb://SERIAL``, ``adb://``, ``fake``, or a name from the devices file.
        threads: threads of the runtime; with ``options``, theirs count.
        options: how to measure.
        inputs: in torch's layout; the first sample is used. Seeded ones by default.
        reference: what the model must compute for these inputs, in torch's layout, one array an output. By default, on any
            device but this one, what this machine computes from the same file.
        worker: what answers on a remote device: its ``python``, the ``native`` runner, or the first of them that can.
        ssh_config: another configuration file for OpenSSH.
        keep: leave what was sent on the device.
        progress: called after each process.

    Raises:
        InputError: the file, the inputs, the options or the device's name cannot be used.
        RuntimeFailure: the runtime crashed or refused the file.
        DeviceError: the device cannot be reached.
    """
    options = options or BenchOptions(threads=threads)
    case = make_case(artifact, seed=options.seed, inputs=inputs)
    with open_runner(device, ssh_config=ssh_config, keep=keep) as runner:
        return bench_case(case, runner, options, Launchers(runner, worker), reference=reference, progress=progress)


def bench_case(
    case: Case,
    runner: Runner,
    options: BenchOptions,
    launchers: Launchers,
    *,
    reference: Sequence[Array] | None = None,
    gate: ThermalGate | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Measurement:
    """The same for a case and an open runner."""
    case = with_fallback_ops(case, runner)
    if runner.url not in ("fake", "host") and reference is None:
        reference = host_outputs(case)
    with placed(case, runner, launchers.of(case.format), options) as place:
        return measure(place, gate=gate, reference=reference, progress=progress)


def with_fallback_ops(case: Case, runner: Runner) -> Case:
    """The case, knowing which of its ops no delegate takes; a fake device says that itself."""
    return case if runner.url == "fake" else replace(case, fallback_ops=fallback_ops(case.path))


def bench_many(
    artifacts: Sequence[Artifact | Path | str],
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    inputs: Sequence[Array] | None = None,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Several artifacts on one device, one after the other, each after the device has cooled down."""
    options = options or BenchOptions()
    cases = [make_case(artifact, seed=options.seed, inputs=inputs) for artifact in artifacts]
    with open_runner(device, ssh_config=ssh_config) as runner:
        gate, launchers = ThermalGate(runner, options), Launchers(runner, worker)
        return [bench_case(case, runner, options, launchers, gate=gate, progress=progress) for case in cases]


def host_outputs(case: Case) -> tuple[Array, ...]:
    """What this machine's runtime computes for the case, in torch's layout."""
    outputs = execute(case.path, case.inputs, sha256=case.sha256)
    return tuple(from_file(spec, output) for spec, output in zip(case.output_specs, outputs, strict=True))
