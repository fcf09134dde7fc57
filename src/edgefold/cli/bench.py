"""`edgefold bench`, `compare` and `devices`: how fast is it, is one faster than the other, and where can it run?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.cli.options import Artifacts, Device, Json, MaxSecs, Target, Threads

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.device_bench import BenchOptions
    from edgefold.results import Comparison, DeviceInfo, Measurement

Cores = Annotated[str | None, typer.Option("--cores", help="Pin to these cores, e.g. 4-7 or 0,2.", show_default="not pinned")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Fresh processes of each artifact.", show_default="5")]
SshConfig = Annotated[
    Path | None, typer.Option("--ssh-config", envvar="EDGEFOLD_SSH_CONFIG", help="Another configuration file for OpenSSH.")
]


def bench(
    target: Target,
    artifact: Artifacts = None,
    device: Device = "host",
    threads: Threads = 1,
    cores: Cores = None,
    processes: Processes = None,
    max_secs: MaxSecs = 120.0,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Measure latency, load time and memory on a device."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifacts_of, is_bundle

    with output(as_json) as out:
        from edgefold.device_bench import bench as measure

        options = _options(threads, cores, processes, max_secs)
        measured: dict[str, Measurement] = {}
        with artifacts_of(target, artifact) as artifacts, progress("measuring") as say:
            for name, found in artifacts.items():
                say(f"measuring {name} on {device}")
                measured[name] = measure(found, device, options=options, ssh_config=ssh_config)
        results = list(measured.values())
        out.show(results if is_bundle(target) else results[0], lambda: _measured(measured))


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
        from edgefold.device_bench.compare import MIN_BLOCKS

        options = _options(threads, cores, 2 * MIN_BLOCKS, max_secs)
        artifacts = [artifact_at(path) for path in (a, b)]
        with progress(f"comparing {a.name} and {b.name} on {device}"):
            found = measure(artifacts[0], artifacts[1], device, options, threshold=threshold / 100, ssh_config=ssh_config)
        out.show(found, lambda: _compared(found))


def devices(
    device: Annotated[list[str] | None, typer.Argument(help="Devices to look at.", show_default="host")] = None,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Show devices and their state."""
    from edgefold.cli.output import output

    with output(as_json) as out:
        from edgefold.device_bench.runners import open_runner

        found: list[DeviceInfo] = []
        for url in device or ["host"]:
            with open_runner(url, ssh_config=ssh_config) as runner:
                found.append(runner.info())
        out.show(found, lambda: _devices(found))


def _options(threads: int, cores: str | None, processes: int | None, max_secs: float) -> BenchOptions:
    from edgefold.device_bench import BenchOptions

    if processes is None:
        return BenchOptions(threads=threads, cores=cores, max_secs=max_secs)
    return BenchOptions(threads=threads, cores=cores, processes=processes, max_secs=max_secs)


def _measured(measured: dict[str, Measurement]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import duration, size
    from edgefold.results import Code

    def latency(found: Measurement) -> str:
        # An emulator's time is no latency of any device.
        if Code.EMULATED in found.codes:
            return "emulated"
        low, high = found.interval_ns
        return f"{duration(found.median_ns)} [{duration(low)}, {duration(high)}]"

    yield table(
        ("artifact", "runtime", "threads", "load", "first", "median [95 %]", "p90", "peak memory", "noise", "codes"),
        [
            (
                name,
                found.runtime,
                str(found.threads),
                duration(found.load_ns),
                duration(found.first_ns),
                latency(found),
                "" if found.p90_ns is None else duration(found.p90_ns.value),
                size(found.peak_rss_bytes),
                f"{found.noise * 100:.1f} %",
                " ".join(found.codes),
            )
            for name, found in measured.items()
        ],
        "llrrrrrrrw",
    )


def _compared(found: Comparison) -> Iterable[RenderableType]:
    from edgefold.report.table import duration

    ratio, codes = found.ratio, f" ({' '.join(found.codes)})" if found.codes else ""
    yield f"{found.candidate.artifact} against {found.baseline.artifact} on {found.candidate.device.url}: {found.verdict}{codes}"
    yield f"time ratio {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], threshold {found.threshold * 100:g} %"
    yield f"medians {duration(found.candidate.median_ns)} and {duration(found.baseline.median_ns)}"


def _devices(found: list[DeviceInfo]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import size

    def state(info: DeviceInfo) -> str:
        parts = (
            "emulated" if info.emulated else "",
            "" if info.temperature_c is None else f"{info.temperature_c:.0f} °C",
            "" if info.battery_percent is None else f"battery {info.battery_percent} %",
            "" if info.load_1min is None else f"load {info.load_1min:g}",
        )
        return ", ".join(part for part in parts if part)

    yield table(
        ("device", "model", "CPU", "machine", "system", "features", "memory", "state"),
        [
            (
                info.url,
                info.model or "",
                info.cpu,
                info.machine,
                info.os_version or info.system,
                " ".join(info.features),
                "" if info.memory_bytes is None else size(info.memory_bytes),
                state(info),
            )
            for info in found
        ],
        "lllllwrw",
    )
