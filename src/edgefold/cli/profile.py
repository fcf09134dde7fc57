"""`edgefold profile` and `diagnose`: where the time of an inference goes on a device, and why it is slow there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefold.cli.options import Cores, Device, Json, SshConfig, Threads, Worker

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.device_bench import OpProfile, OpTime, Roofline, SlownessReport

_File = Annotated[Path, typer.Argument(help="An .onnx, .tflite or .pte file.", show_default=False)]


def profile(
    file: _File,
    device: Device = "host",
    threads: Threads = 1,
    cores: Cores = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only the slowest so many.", show_default="all")] = None,
    worker: Worker = "auto",
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Show the time of each op, with its PyTorch module."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifact_at

    with output(as_json) as out:
        from edgefold.device_bench import BenchOptions
        from edgefold.device_bench import profile as measure

        artifact = artifact_at(file)
        options = BenchOptions(threads=threads, cores=cores)
        with progress(f"profiling {file.name} on {device}"):
            found = measure(artifact, device, options, worker=worker, ssh_config=ssh_config)
        out.show(found, lambda: _profiled(found, top))


def diagnose(
    file: _File,
    device: Device = "host",
    threads: Threads = 1,
    cores: Cores = None,
    worker: Worker = "auto",
    ssh_config: SshConfig = None,
    as_json: Json = False,
) -> None:
    """Say why a file is slow on a device, the largest cause first."""
    from edgefold.cli.output import output, progress
    from edgefold.cli.targets import artifact_at

    with output(as_json) as out:
        from edgefold.device_bench import BenchOptions
        from edgefold.device_bench import diagnose as look

        artifact = artifact_at(file)
        options = BenchOptions(threads=threads, cores=cores)
        with progress(f"looking at {file.name} on {device}"):
            found = look(artifact, device, options, worker=worker, ssh_config=ssh_config)
        out.show(found, lambda: _diagnosed(found))


def _profiled(found: OpProfile, top: int | None) -> Iterable[RenderableType]:
    ops = found.ops if top is None else found.slowest[:top]
    share = " (slowest first)" if top is not None else ""
    yield _table(ops, f"{found.artifact} on {found.device}, {found.runtime}{share}")
    if found.emulated:
        yield "The device is emulated: the shares say nothing of a real one."
    yield "Looking at ops slows them down: the shares count, not the sum. For the latency: edgefold bench."


def _diagnosed(found: SlownessReport) -> Iterable[RenderableType]:
    yield f"{found.artifact} on {found.device}"
    if not found.causes:
        yield "no cause of slowness found"
    for position, cause in enumerate(found.causes, 1):
        yield f"{position}. {cause.title}: {cause.detail}"
    if found.top:
        yield _table(found.top, "the slowest ops", found.roofline)
    if found.roofline is not None:
        limits = found.roofline
        yield (
            f"this device at best (threads: {limits.threads}): {limits.operations_per_s / 1e9:.3g} Gop/s in float32, "
            f"{limits.bytes_per_s / 1e9:.3g} GB/s; below {limits.ridge:.1f} operations a byte the memory is the limit"
        )


def _table(ops: Iterable[OpTime], title: str, limits: Roofline | None = None) -> RenderableType:
    from edgefold.cli.output import table
    from edgefold.report.plan_pictures import count
    from edgefold.report.table import duration, percent, size

    def row(op: OpTime) -> tuple[str, ...]:
        work = count(op.macs) if op.macs else "", size(op.moved_bytes) if op.moved_bytes else ""
        cells = (op.module, op.op, duration(op.ns), percent(op.share), *work)
        if limits is None:
            return cells
        if not (op.macs or op.moved_bytes):
            return (*cells, "", "")
        return (*cells, "memory" if limits.memory_bound(op) else "arithmetic", percent(limits.reached(op)))

    headers = ("module", "op", "time", "share", "multiply-adds", "data")
    more = () if limits is None else ("limit", "of it reached")
    return table((*headers, *more), map(row, ops), "llrrrr" + "lr" * (limits is not None), title=title)
