"""The runtimes' own benchmark programs, for those who have one: pushed, run in fresh processes and read into the same result.

* TFLite/LiteRT ``benchmark_model``: init, first inference and mean, in microseconds.
* ``onnxruntime_perf_test``: session creation, first inference, mean.
* ExecuTorch ``executor_runner``: the time of a number of runs.

They tell means, not samples: a process gives one sample, so such a measurement carries FEW_SAMPLES, and its outputs stay
unchecked. What they do not tell (memory; load time and first inference of ``executor_runner``) is ``None``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgefold.artifact import Artifact, Format
from edgefold.device_bench.cases import GRACE_S, Case, make_case
from edgefold.device_bench.gate import ThermalGate
from edgefold.device_bench.inspection import fallback_ops
from edgefold.device_bench.launch import HostLauncher
from edgefold.device_bench.method import START_S, Memory, PlacedCase, assemble, in_time
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.base import Completed, RemotePath, Runner
from edgefold.device_bench.watching import while_it_works
from edgefold.errors import RuntimeFailure, UsageError
from edgefold.results import Measurement, Run
from edgefold.runtime.protocol import last_line

RUNS = 100
TOOL_FILE = "tool"


@dataclass(frozen=True, slots=True)
class Tool:
    """How one program is called and read. ``arguments`` gets the model's path and the number of threads."""

    name: str
    arguments: Callable[[RemotePath, int], list[str]]
    read: Callable[[str], Run | None]


def read_benchmark_model(text: str) -> Run | None:
    """``Inference timings in us: Init: 5685, First inference: 1853, Warmup (avg): 1446.2, Inference (avg): 1457.5``."""
    number = r"([\d.]+(?:e[+-]?\d+)?)"
    match = re.search(rf"Init: {number}, First inference: {number}, Warmup \(avg\): {number}, Inference \(avg\): {number}", text)
    if match is None:
        return None
    init, first, warmup, mean = (round(1e3 * float(group)) for group in match.groups())
    return Run((mean,), init, first, (warmup,))


def read_perf_test(text: str) -> Run | None:
    """``Session creation time cost: 0.02 s``, ``First inference time cost: 2 ms``, ``Average inference time cost: 1.5 ms``."""

    def found(label: str) -> int | None:
        match = re.search(rf"^{label}: ([\d.e+-]+) (s|ms|us)", text, re.MULTILINE)
        return None if match is None else round(float(match.group(1)) * {"s": 1e9, "ms": 1e6, "us": 1e3}[match.group(2)])

    mean = found("Average inference time cost(?: total)?")
    if mean is None:
        return None
    return Run((mean,), found("Session creation time cost"), found("First inference time cost"), ())


def read_executor_runner(text: str) -> Run | None:
    """``Model executed successfully 100 time(s) in 123.4 ms.``"""
    match = re.search(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", text)
    if match is None or int(match.group(1)) == 0:
        return None
    return Run((round(1e6 * float(match.group(2)) / int(match.group(1))),), None, None, ())


TOOLS = {
    Format.TFLITE: Tool(
        "benchmark_model",
        lambda model, threads: [f"--graph={model}", f"--num_threads={threads}", f"--num_runs={RUNS}"],
        read_benchmark_model,
    ),
    Format.ONNX: Tool(
        "onnxruntime_perf_test",
        lambda model, threads: ["-e", "cpu", "-m", "times", "-r", str(RUNS), "-x", str(threads), "-y", "1", "-I", model],
        read_perf_test,
    ),
    Format.EXECUTORCH: Tool(
        "executor_runner",
        lambda model, threads: [f"--model_path={model}", f"--num_executions={RUNS}", f"--cpu_threads={threads}"],
        read_executor_runner,
    ),
}


def bench_with_tool(
    artifact: Artifact | Path | str,
    tool: Path,
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    ssh_config: Path | None = None,
) -> Measurement:
    """Measures an artifact with its runtime's own program, which must be built for the device.

    Raises:
        InputError: the artifact, the tool, the options or the device's name cannot be used.
        RuntimeFailure: the tool failed, or printed nothing that its kind prints.
        DeviceError: the device cannot be reached.
    """
    options = options or BenchOptions()
    if not tool.is_file():
        raise UsageError(f"tool '{tool}' does not exist; give the path of a benchmark program built for the device")
    if options.cores:
        raise UsageError("cores cannot be chosen with a tool of another maker; leave out cores, or the tool")
    case = make_case(artifact, seed=options.seed)
    kind = TOOLS[case.format]
    with open_runner(device, ssh_config=ssh_config) as runner:
        folder = _push(runner, case, tool)
        before, gate_reached = ThermalGate(runner, options).cool_down()
        argv = [f"{folder}/{TOOL_FILE}", *kind.arguments(f"{folder}/model{case.format.suffix}", options.threads)]
        runs = tuple(_process(runner, argv, case, kind, options) for _ in in_time(options))
        # Once more, to look at the device meanwhile: that would disturb the times.
        _, during = while_it_works(runner, lambda: _process(runner, argv, case, kind, options))
        place = PlacedCase(case, runner, HostLauncher(), options, folder)
        place.runtime = f"{case.format} by {kind.name}"
        place.fallback_ops = fallback_ops(case.path)
        return assemble(place, runs, (before, during, runner.info()), Memory(), gate_reached=gate_reached, parity=None)


def _push(runner: Runner, case: Case, tool: Path) -> RemotePath:
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        folder = Path(temporary)
        (folder / TOOL_FILE).symlink_to(tool.resolve())
        (folder / f"model{case.format.suffix}").symlink_to(case.path)
        return runner.push(folder)


def _process(runner: Runner, argv: list[str], case: Case, kind: Tool, options: BenchOptions) -> Run:
    done = runner.run(argv, timeout_s=options.max_secs / options.processes + GRACE_S + START_S)
    # Some of them print to stderr.
    run = kind.read((done.stdout + b"\n" + done.stderr).decode("utf-8", errors="replace"))
    if done.returncode or run is None:
        raise RuntimeFailure(
            f"the tool gave no times for '{case.name}' (exit code {done.returncode}, it said: {_said(done)}); "
            f"expected {kind.name}, built for this device"
        )
    return run


def _said(done: Completed) -> str:
    return last_line(done.stderr) or last_line(done.stdout) or "nothing"
