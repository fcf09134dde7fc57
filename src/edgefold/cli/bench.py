"""`edgefold bench` and `compare`: how fast is it there, did it become slower, and is one faster than the other?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgefold.cli.bench_modes import refuse_ignored
from edgefold.cli.bench_tables import compared_lines, count_gate_line, count_table, curve_table, gate_line, measured_table
from edgefold.cli.options import Artifacts, Cores, Device, Json, Keep, MaxSecs, SshConfig, Target, Threads, Worker
from edgefold.errors import DeviceError, EdgefoldError, UsageError

if TYPE_CHECKING:
    from edgefold.artifact import Artifact
    from edgefold.cli.output import Output
    from edgefold.device_bench import BenchOptions, SustainedResult
    from edgefold.results import Measurement

PROCESSES, MAX_SECS = 5, 120.0


def bench(
    target: Target,
    artifact: Artifacts = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Where it runs; can be given more than once, to measure in parallel.", show_default="host"),
    ] = None,
    threads: Threads = 1,
    cores: Cores = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes of each artifact.")] = PROCESSES,
    max_secs: MaxSecs = MAX_SECS,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Stored results (bench --json) to compare with.")] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            metavar="RULE",
            help="With --baseline: what exits 1, slower:PERCENT% or, with --count, more:PERCENT%.",
            show_default="slower:3%, more:0.1%",
        ),
    ] = None,
    sustained: Annotated[
        str | None, typer.Option("--sustained", metavar="TIME", help="Run without a pause for 90s or 10m: the curve over time.")
    ] = None,
    count: Annotated[
        Literal["instructions"] | None, typer.Option("--count", help="Count on an emulated ARM core instead of timing.")
    ] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", help="With --count: the core.", show_default="cortex-a76")] = None,
    tool: Annotated[
        Path | None,
        typer.Option(
            "--tool", help="Measure with the runtime's own program: benchmark_model, onnxruntime_perf_test or executor_runner."
        ),
    ] = None,
    worker: Worker = "auto",
    keep: Keep = False,
    remember: Annotated[bool, typer.Option("--remember/--no-remember", help="Add the result to the history.")] = True,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Measure latency, load time and memory on a device."""
    from edgefold.cli.output import output
    from edgefold.cli.targets import artifacts_of, is_bundle

    urls = device or ["host"]
    refuse_ignored(
        {"--count": count is not None, "--sustained": sustained is not None, "--tool": tool is not None},
        {
            "--device": urls != ["host"],
            "--threads": threads != 1,
            "--cores": cores is not None,
            "--processes": processes != PROCESSES,
            "--max-secs": max_secs != MAX_SECS,
            "--baseline": baseline is not None,
            "--fail-on": fail_on is not None,
            "--cpu": cpu is not None,
            "--worker": worker != "auto",
            "--keep": keep,
            "--ssh-config": ssh_config is not None,
        },
    )
    with output(as_json) as out, artifacts_of(target, artifact) as artifacts:
        if count is not None:
            _count(out, _single(artifacts, urls), cpu or "cortex-a76", baseline, fail_on)
            return
        options = _options(threads, cores, processes, max_secs)
        if sustained is not None:
            curve = _sustained(_single(artifacts, urls), urls[0], minutes(sustained), options, worker, ssh_config)
            out.show(curve, lambda: curve_table(curve))
            return
        rule = fail_on or "slower:3%"
        stored = None if baseline is None else _stored(baseline, rule)  # a bad file is told before the measuring
        if tool is not None:
            lost: list[EdgefoldError] = []
            measured = _measure_with_tool(artifacts, urls, options, tool, ssh_config=ssh_config)
        else:
            measured, lost = _measure(artifacts, urls, options, worker, keep=keep, ssh_config=ssh_config)
        results = [each for _, each in measured]
        if remember:
            _remember(results)
        several = is_bundle(target) or len(urls) > 1
        if results:
            out.show(results if several else results[0], lambda: measured_table(measured))
        if lost:
            raise lost[0] if len(lost) == 1 else DeviceError("; ".join(map(str, lost)))
        if stored is not None:
            from edgefold.device_bench import check_baseline

            out.say(gate_line(each) for each in check_baseline(results, stored, rule))


def compare(
    a: Annotated[Path, typer.Argument(help="The baseline: a model file.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The candidate: a model file.", show_default=False)],
    device: Device = "host",
    threads: Threads = 1,
    cores: Cores = None,
    threshold: Annotated[float, typer.Option("--threshold", min=0.0, help="Smallest difference that counts, in percent.")] = 1.0,
    max_secs: MaxSecs = MAX_SECS,
    worker: Worker = "auto",
    keep: Keep = False,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Say whether B is faster than A, measured side by side."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifact_at

    with output(as_json) as out:
        from edgefold.device_bench import compare as measure
        from edgefold.device_bench.comparison import MIN_BLOCKS

        options = _options(threads, cores, 2 * MIN_BLOCKS, max_secs)
        artifacts = [artifact_at(path) for path in (a, b)]
        kept: list[str] = []
        try:
            with progress(f"comparing {a.name} and {b.name} on {device}"):
                found = measure(
                    artifacts[0],
                    artifacts[1],
                    device,
                    options,
                    threshold=threshold / 100,
                    worker=worker,
                    ssh_config=ssh_config,
                    keep=keep,
                    kept=kept,
                )
        finally:
            _say_kept(device, kept)
        out.show(found, lambda: compared_lines(found))


def minutes(text: str) -> float:
    """``90s`` -> 1.5, ``10m`` -> 10.

    Raises:
        UsageError: another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"time '{text}' cannot be read; expected a number with s, m or h, such as 90s or 10m")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def _options(threads: int, cores: str | None, processes: int | None, max_secs: float) -> BenchOptions:
    from edgefold.device_bench import BenchOptions

    options = BenchOptions(threads=threads, cores=cores, max_secs=max_secs)
    return options if processes is None else replace(options, processes=processes)


def _stored(path: Path, rule: str) -> list[Measurement]:
    from edgefold.device_bench import load_measurements
    from edgefold.device_bench.baseline import parse_rule

    parse_rule(rule, "slower")
    return load_measurements(path)


def _measure(
    artifacts: dict[str, Artifact],
    urls: list[str],
    options: BenchOptions,
    worker: Literal["auto", "python", "native"],
    *,
    keep: bool,
    ssh_config: Path | None,
) -> tuple[list[tuple[str, Measurement]], list[EdgefoldError]]:
    """Each artifact on each device by name, and what became of devices that dropped out."""
    from edgefold.cli.output import progress
    from edgefold.device_bench import bench_devices

    with progress("measuring") as say:
        say(f"measuring {', '.join(artifacts)} on {', '.join(urls)}")
        fleet = bench_devices(list(artifacts.values()), urls, options, worker=worker, ssh_config=ssh_config, keep=keep)
    for each in fleet:
        _say_kept(each.device, each.kept)
    # A device that dropped out has the results of the artifacts before.
    pairs = [(name, one) for each in fleet for name, one in zip(artifacts, each.measurements, strict=False)]
    return pairs, [each.failure for each in fleet if each.failure is not None]


def _say_kept(device: str, places: Iterable[str]) -> None:
    for place in places:
        print(f"kept on {device}: {place}", file=sys.stderr)


def _measure_with_tool(
    artifacts: dict[str, Artifact], urls: list[str], options: BenchOptions, tool: Path, *, ssh_config: Path | None
) -> list[tuple[str, Measurement]]:
    """Each artifact on one device by the program of its runtime, of which one is given."""
    from edgefold.cli.output import progress
    from edgefold.device_bench import bench_with_tool

    formats = {found.format for found in artifacts.values()}
    if len(urls) != 1 or len(formats) != 1:
        raise UsageError(
            f"--tool takes one device and files of one format, not {len(urls)} and {len(formats)}; choose with --artifact"
        )
    with progress(f"measuring with {tool.name} on {urls[0]}"):
        return [
            (name, bench_with_tool(found, tool, urls[0], options, ssh_config=ssh_config)) for name, found in artifacts.items()
        ]


def _single(artifacts: dict[str, Artifact], urls: list[str]) -> Artifact:
    if len(artifacts) != 1 or len(urls) != 1:
        found = f"{len(artifacts)} and {len(urls)}"
        raise UsageError(f"--sustained and --count take one artifact and one device, not {found}; choose with --artifact")
    return next(iter(artifacts.values()))


def _sustained(
    artifact: Artifact,
    url: str,
    length_min: float,
    options: BenchOptions,
    worker: Literal["auto", "python", "native"],
    ssh_config: Path | None,
) -> SustainedResult:
    from edgefold.cli.output import progress
    from edgefold.device_bench import sustained as run

    with progress(f"running {artifact.path.name} on {url} for {length_min:g} minutes"):
        return run(artifact, url, length_min, options, worker=worker, ssh_config=ssh_config)


def _count(out: Output, artifact: Artifact, cpu: str, baseline: Path | None, fail_on: str | None) -> None:
    """Count, show, and compare with what was counted before."""
    from edgefold.cli.output import progress
    from edgefold.device_bench import check_counts, count_instructions, load_counts
    from edgefold.device_bench.count_gate import counterpart

    rule = fail_on or "more:0.1%"
    stored = None if baseline is None else load_counts(baseline)
    if stored is not None:  # what can be told before the counting
        counterpart(artifact.path.name, artifact.format, cpu, stored, rule)
    with progress(f"counting the instructions of {artifact.path.name} on an emulated {cpu}"):
        counted = count_instructions(artifact, cpu)
    out.show(counted, lambda: count_table(counted))
    if stored is not None:
        out.say([count_gate_line(check_counts(counted, stored, rule))])


def _remember(results: list[Measurement]) -> None:
    """Add what was measured on real devices to the history."""
    from edgefold.device_bench import remember

    real = [each for each in results if each.device.url != "fake"]
    if real:
        remember(real)
