"""`edgefold devices`, `history` and `runner build`: what can be reached, what was measured there, what runs there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.cli.options import Force, Json, SshConfig, refuse_other_than_svg
from edgefold.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.device_bench import DeviceStatus, HistoryEntry
    from edgefold.results import DeviceInfo


# So many artifacts are named where the history has not what was asked for.
_NAMED = 5
# Android's own words.
_THERMAL = {1: "light", 2: "moderate", 3: "severe", 4: "critical", 5: "emergency", 6: "shutdown"}


def devices(
    device: Annotated[
        list[str] | None, typer.Argument(help="Devices to look at.", show_default="this machine, attached phones, named devices")
    ] = None,
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Show devices and their state.

    The exit code is 3 where a device that was asked for cannot be reached.
    """
    from edgefold.cli.output import output

    with output(as_json) as out:
        from edgefold.device_bench import devices as look

        found = look(device or (), ssh_config=ssh_config)
        out.show(found, lambda: _devices(found))
    if device and any(status.info is None for status in found):
        raise typer.Exit(DeviceError.exit_code)


def history(
    artifact: Annotated[
        str | None,
        typer.Argument(help="A model file, a bundle, a file's name, or the beginning of its SHA-256.", show_default="everything"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Only what was measured there: host, ssh://USER@BOARD, adb://SERIAL, adb://, or a name."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 1000,
    svg: Annotated[Path | None, typer.Option("--svg", help="Also draw the trend, as an .svg file.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show past measurements and their trend."""
    from edgefold.cli.output import output

    refuse_other_than_svg(svg)
    with output(as_json) as out:
        from edgefold.artifact import atomic_path
        from edgefold.device_bench import trend_svg

        entries = _found(artifact, device, limit)
        if svg is not None:
            with atomic_path(svg, force=force) as temporary:
                temporary.write_text(trend_svg(entries), encoding="utf-8")
        out.show([asdict(entry) for entry in entries], lambda: _history(entries))


def build(
    out_dir: Annotated[Path | None, typer.Option("--out", "-o", help="Where to put it.", show_default="the user's cache")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build the native runner for aarch64 devices without Python."""
    from edgefold.cli.output import output, progress

    with output(as_json) as out:
        from edgefold.device_bench import build_runner

        with progress("building the runner") as say:
            made = build_runner(out_dir, force=force, say=say)
        out.show({"schema": "edgefold.Runner/1", "path": str(made)}, lambda: [f"runner: {made}"])


def _devices(found: list[DeviceStatus]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import size

    def row(status: DeviceStatus) -> tuple[str, ...]:
        info = status.info
        if info is None:
            return (status.name, status.state, "", "", "", "", "", status.detail)
        memory = "" if info.memory_bytes is None else size(info.memory_bytes)
        system = info.os_version or info.system
        return (status.name, status.state, info.model or "", info.cpu, info.machine, system, memory, _condition(info))

    yield table(("device", "state", "model", "CPU", "machine", "system", "memory", "condition"), map(row, found), "lllllwrw")


def _condition(info: DeviceInfo) -> str:
    parts = (
        "emulated" if info.emulated else "",
        "" if info.temperature_c is None else f"{info.temperature_c:.0f} °C",
        "" if not info.thermal_status else f"thermal status {_THERMAL.get(info.thermal_status, info.thermal_status)}",
        "" if info.battery_percent is None else f"battery {info.battery_percent} %",
        "" if info.load_1min is None else f"load {info.load_1min:g}",
    )
    return ", ".join(part for part in parts if part)


def _found(artifact: str | None, device: str | None, limit: int) -> list[HistoryEntry]:
    """What the history has of a file or of all artifacts of a bundle, from old to new.

    Raises:
        UsageError: something was asked for, and there is nothing of it.
    """
    from edgefold.cli.targets import is_bundle, opened
    from edgefold.device_bench import history as read

    if artifact is not None and is_bundle(Path(artifact)) and Path(artifact).exists():
        with opened(Path(artifact)) as bundle:
            several = [read(each.path, device, limit=limit) for each in bundle.artifacts.values()]
        unique = {entry.id: entry for entries in several for entry in entries}
        found = sorted(unique.values(), key=lambda entry: (entry.date, entry.id))[-limit:]
    else:
        found = read(artifact, device, limit=limit)
    if not found and (artifact or device):
        raise UsageError(_nothing(artifact, device))
    return found


def _nothing(artifact: str | None, device: str | None) -> str:
    from edgefold.device_bench import remembered

    there = [f"{name} on {url}" for name, url in remembered()]
    wanted = " ".join([*([f"of '{artifact}'"] if artifact else []), *([f"on '{device}'"] if device else [])])
    if not there:
        return f"the history has nothing {wanted}, and nothing else; measure with: edgefold bench FILE"
    more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
    return f"the history has nothing {wanted}; it has {', '.join(there[:_NAMED])}{more}"


def _history(entries: list[HistoryEntry]) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.device_bench import by_series, series_name, sparkline
    from edgefold.report.table import latency

    if not entries:
        yield "nothing was measured yet; measure with: edgefold bench FILE"
        return

    lines = [
        (
            str(entry.id),
            entry.date,
            entry.artifact,
            entry.device,
            entry.runtime,
            str(entry.threads),
            latency(entry.median_ns, (entry.low_ns, entry.high_ns), entry.codes),
            "new file" if entry.changed else "",
            " ".join(entry.codes),
        )
        for entry in entries
    ]
    yield table(("id", "date", "artifact", "device", "runtime", "threads", "median [95 %]", "", "codes"), lines, "rllllrrlw")
    for series in by_series(entries):
        if len(series) > 1:
            yield f"trend of {series_name(series[0])}: {sparkline(series)}"
