"""`edgefold bench` and `compare`: how fast is it there, did it become slower, and is one faster than the other?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgefold.cli.options import Artifacts, Cores, Device, Json, MaxSecs, SshConfig, Target, Threads, Worker
from edgefold.errors import DeviceError, EdgefoldError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import Artifact
    from edgefold.device_bench import BenchOptions, InstructionCount, SustainedResult
    from edgefold.results import Comparison, Measurement


def bench(
    target: Target,
    artifact: Artifacts = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Where it runs; can be given more than once, to measure in parallel.", show_default="host"),
    ] = None,
    threads: Threads = 1,
    cores: Cores = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes of each artifact.")] = 5,
    max_secs: MaxSecs = 120.0,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Stored results (bench --json) to compare with.")] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", help="With --baseline: what exits 1.")] = "slower:3%",
    sustained: Annotated[
        str | None, typer.Option("--sustained", metavar="TIME", help="Run without a pause for 90s or 10m: the curve over time.")
    ] = None,
    count: Annotated[
        Literal["instructions"] | None, typer.Option("--count", help="Count on an emulated ARM core instead of timing.")
    ] = None,
    cpu: Annotated[str, typer.Option("--cpu", help="With --count: the core.")] = "cortex-a76",
    tool: Annotated[
        Path | None,
        typer.Option(
            "--tool", help="Measure with the runtime's own program: benchmark_model, onnxruntime_perf_test or executor_runner."
        ),
    ] = None,
    worker: Worker = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was sent on the device.")] = False,
    remember: Annotated[bool, typer.Option("--remember/--no-remember", help="Add the result to the history.")] = True,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Measure latency, load time and memory on a device."""
    from edgefold.cli.output import output
    from edgefold.cli.targets import artifacts_of, is_bundle

    with output(as_json) as out:
        options = _options(threads, cores, processes, max_secs)
        urls = device or ["host"]
        stored = None if baseline is None else _stored(baseline, fail_on)  # a bad file is told before the measuring
        with artifacts_of(target, artifact) as artifacts:
            if sustained is not None or count is not None:
                if sustained is not None and count is not None:
                    raise UsageError("--sustained and --count do not go together; give one of them")
                one = _single(artifacts, urls)
                if sustained is not None:
                    curve = _sustained(one, urls[0], minutes(sustained), options, worker, ssh_config)
                    out.show(curve, lambda: _curve(curve))
                else:
                    counted = _counted(one, cpu)
                    out.show(counted, lambda: _counts(counted))
                return
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
            out.show(results if several else results[0], lambda: _measured(measured))
        if lost:
            raise lost[0] if len(lost) == 1 else DeviceError("; ".join(map(str, lost)))
        if stored is not None:
            from edgefold.device_bench import check_baseline

            check_baseline(results, stored, fail_on)


def compare(
    a: Annotated[Path, typer.Argument(help="The baseline: a model file.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The candidate: a model file.", show_default=False)],
    device: Device = "host",
    threads: Threads = 1,
    cores: Cores = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Smallest difference that counts, in percent.")] = 1.0,
    max_secs: MaxSecs = 120.0,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Say whether B is faster or slower than A, measured side by side on one device."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifact_at

    with output(as_json) as out:
        from edgefold.device_bench import compare as measure
        from edgefold.device_bench.comparison import MIN_BLOCKS

        options = _options(threads, cores, 2 * MIN_BLOCKS, max_secs)
        artifacts = [artifact_at(path) for path in (a, b)]
        with progress(f"comparing {a.name} and {b.name} on {device}"):
            found = measure(artifacts[0], artifacts[1], device, options, threshold=threshold / 100, ssh_config=ssh_config)
        out.show(found, lambda: _compared(found))


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

    parse_rule(rule)
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
    # A device that dropped out has the results of the artifacts before.
    pairs = [(name, one) for each in fleet for name, one in zip(artifacts, each.measurements, strict=False)]
    return pairs, [each.failure for each in fleet if each.failure is not None]


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


def _counted(artifact: Artifact, cpu: str) -> InstructionCount:
    from edgefold.cli.output import progress
    from edgefold.device_bench import count_instructions

    with progress(f"counting the instructions of {artifact.path.name} on an emulated {cpu}"):
        return count_instructions(artifact, cpu)


def _remember(results: list[Measurement]) -> None:
    """Add what was measured on real devices to the history."""
    from edgefold.device_bench import remember

    real = [each for each in results if each.device.url != "fake"]
    if real:
        remember(real)


def _measured(measured: list[tuple[str, Measurement]]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import duration, known, size
    from edgefold.results import Code

    def latency(found: Measurement) -> str:
        # An emulator's time is no latency of any device.
        if Code.EMULATED in found.codes:
            return "emulated"
        low, high = found.interval_ns
        return f"{duration(found.median_ns)} [{duration(low)}, {duration(high)}]"

    yield table(
        ("artifact", "device", "runtime", "threads", "load", "first", "median [95 %]", "p90", "peak memory", "noise", "codes"),
        [
            (
                name,
                found.device.url,
                found.runtime,
                str(found.threads),
                known(found.load_ns, duration),
                known(found.first_ns, duration),
                latency(found),
                "" if found.p90_ns is None else duration(found.p90_ns.value),
                known(found.peak_rss_bytes, size),
                f"{found.noise * 100:.1f} %",
                " ".join(found.codes),
            )
            for name, found in measured
        ],
        "lllrrrrrrrw",
    )


def _compared(found: Comparison) -> Iterable[RenderableType]:
    from edgefold.report.table import duration

    ratio, codes = found.ratio, f" ({' '.join(found.codes)})" if found.codes else ""
    yield f"{found.candidate.artifact} against {found.baseline.artifact} on {found.candidate.device.url}: {found.verdict}{codes}"
    yield f"time ratio {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], threshold {found.threshold * 100:g} %"
    yield f"medians {duration(found.candidate.median_ns)} and {duration(found.baseline.median_ns)}"


def _curve(curve: SustainedResult) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import duration, percent

    lines = [
        (
            f"{point.at_s:.0f} s",
            duration(point.median_ns),
            "" if point.temperature_c is None else f"{point.temperature_c:.0f} °C",
            "" if point.frequency_khz is None else f"{point.frequency_khz / 1000:.0f} MHz",
        )
        for point in curve.points
    ]
    yield table(("at", "median", "temperature", "frequency"), lines, "rrrr", title=f"{curve.artifact} on {curve.device}")
    yield f"speed kept: {percent(curve.kept_share)}{', throttled' if curve.throttled else ''}"


def _counts(counted: InstructionCount) -> Iterable[RenderableType]:
    from edgefold.cli.output import table

    lines = [(kind, f"{number:,}", f"{counted.first.get(kind, 0):,}") for kind, number in counted.counts.items()]
    yield table(("kind", "an inference", "the first one"), lines, "lrr", title=f"{counted.artifact} on an emulated {counted.cpu}")
    yield f"spread {counted.spread * 100:.4f} %; a cost, not a latency"
