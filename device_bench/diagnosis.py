"""Why is it slow: what the file, the runtime, the CPU and the profile say, the largest cause first.

Every finding names what was found, where, and what to do about it. A device that is only emulated gets no findings about time.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefold.artifact import Artifact, Precision
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.opprofile import OpProfile, OpTime, profile_case
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.roofline import Roofline, measure_roofline
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.watching import while_it_works
from edgefold.results import DeviceInfo
from edgefold.schemes import scheme_of

TOP = 5
CONVERSION = re.compile(r"quantize|^convert\b|\bcast\b|QuantizeLinear", re.IGNORECASE)
LAYOUT = re.compile(r"transpose|permute|reorder|reshape", re.IGNORECASE)
# Shares of the time from which a kind of op is worth a word.
CONVERSION_SHARE, LAYOUT_SHARE = 0.10, 0.10
# A core below this share of its own maximum is not running at speed.
SLOW_CORE_SHARE = 0.6


# An op below this share of what the device can do is held back by neither limit.
FAR_SHARE, BOUND_SHARE = 0.25, 0.10


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason, with its share of the time where that is known."""

    title: str
    detail: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class SlownessReport:
    """What was found. ``top`` are the five ops that take longest, empty on an emulated device, as is ``roofline``."""

    artifact: str
    device: str
    causes: tuple[Cause, ...]
    top: tuple[OpTime, ...]
    roofline: Roofline | None = None


def diagnose(
    artifact: Artifact | Path | str,
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    worker: Worker = "auto",
    ssh_config: Path | None = None,
) -> SlownessReport:
    """Looks for what makes an artifact slow on a device.

    Raises:
        InputError: the file, the options or the device's name cannot be used.
        RuntimeFailure: the runtime crashed, refused the file, or does not tell the times of ops.
        DeviceError: the device cannot be reached, or has no runtime.
    """
    options = options or BenchOptions()
    case = make_case(artifact, seed=options.seed)
    with warnings.catch_warnings():
        # ExecuTorch's own, at its first import.
        warnings.simplefilter("ignore", DeprecationWarning)
        from edgefold.export.inspect import inspect

        inspection = inspect(case.path)
    causes = [
        *fallback(inspection.fallback_modules),
        *float_work(inspection.precision, inspection.float_mac_modules, inspection.integer_mac_share),
    ]
    with open_runner(device, ssh_config=ssh_config) as runner:
        info = runner.info()
        causes += cpu_features(inspection.precision, info)
        if info.emulated:
            emulated = Cause("the device is emulated", "its times say nothing of a real one: look at a real device for the rest")
            return SlownessReport(case.name, runner.url, (*causes, emulated), ())
        launcher = Launchers(runner, worker).of(case.format)
        found, working = while_it_works(runner, lambda: profile_case(case, runner, launcher, options))
        limits = measure_roofline(runner, launcher, options, case.format)
    causes += [
        *by_profile(found),
        *by_roofline(found, limits, integer=_is_integer(inspection.precision)),
        *slow_cores(working, threads=options.threads, pinned=options.core_list()),
    ]
    ordered = sorted(causes, key=lambda cause: -1.0 if cause.share is None else -1.0 - cause.share)
    return SlownessReport(case.name, runner.url, tuple(ordered), found.slowest[:TOP], limits)


def _is_integer(precision: Precision | None) -> bool:
    return precision is not None and scheme_of(precision).integer


def fallback(modules: Sequence[str]) -> list[Cause]:
    """Ops that the delegate left to the slow kernels."""
    if not modules:
        return []
    return [
        Cause("ops outside the delegate", f"{_some(modules)}: these run in plain kernels; replace them by ops that XNNPACK has")
    ]


def float_work(precision: Precision | None, modules: Sequence[str], integer_share: float | None) -> list[Cause]:
    """Layers of an INT8 file that are computed in float."""
    if not _is_integer(precision) or not modules:
        return []
    share = None if integer_share is None else 1 - integer_share
    words = "" if share is None else f" ({share:.0%} of the multiply-accumulates)"
    return [Cause("float layers in an integer file", f"{_some(modules)}{words}: they were not quantized, or did not fuse")]


def by_profile(found: OpProfile) -> list[Cause]:
    """Conversions between float and integers, and moves of data, where they take much of the time."""
    causes = []
    for title, pattern, least, advice in (
        (
            "quantize and dequantize ops",
            CONVERSION,
            CONVERSION_SHARE,
            "use --io int8, or find the ops that break up the integer part",
        ),
        (
            "ops that only move data",
            LAYOUT,
            LAYOUT_SHARE,
            "choose the runtime's own layout with --layout nhwc, or another lowering",
        ),
    ):
        ops = [op for op in found.ops if pattern.search(op.op)]
        share = sum(op.share for op in ops)
        if share >= least:
            causes.append(
                Cause(
                    title, f"{len(ops)} of them take {share:.0%} of the time ({_some([op.name for op in ops])}): {advice}", share
                )
            )
    return causes


def by_roofline(found: OpProfile, limits: Roofline, *, integer: bool = False) -> list[Cause]:
    """Ops that wait for the memory, and ops far from both limits of the device; ``integer``: the file has integers already."""
    bound = [op for op in found.slowest if limits.memory_bound(op) and limits.reached(op) >= FAR_SHARE]
    far = [op for op in found.slowest if op.macs and limits.reached(op) < FAR_SHARE]
    words = (
        (
            "memory-bound layers",
            bound,
            f"fewer than {limits.ridge:.1f} operations for each byte, so they wait for the memory: "
            f"use {'' if integer else 'INT8 (a quarter of the bytes), or '}fewer and wider layers",
        ),
        (
            "layers far below what this device can do",
            far,
            f"less than {FAR_SHARE:.0%} of {limits.operations_per_s / 1e9:.3g} Gop/s or {limits.bytes_per_s / 1e9:.3g} GB/s: "
            "small layers and unusual kernels cost more than their work; try another lowering",
        ),
    )
    causes = []
    for title, ops, advice in words:
        share = sum(op.share for op in ops)
        if share >= BOUND_SHARE:
            names = _some([op.module or op.name for op in ops])
            causes.append(Cause(title, f"{len(ops)} of them take {share:.0%} of the time ({names}); {advice}", share))
    return causes


def cpu_features(precision: Precision | None, device: DeviceInfo) -> list[Cause]:
    """Integer instructions that the CPU lacks."""
    if not _is_integer(precision):
        return []
    arm = device.machine in ("aarch64", "arm64", "armv7l", "armv8l")
    wanted = ("asimddp", "i8mm") if arm else ("avx512_vnni", "avx_vnni", "amx_int8")
    if any(feature in device.features for feature in wanted):
        return []
    names = "dotprod (asimddp) and i8mm" if arm else "VNNI and AMX"
    return [
        Cause("no integer dot products", f"{device.cpu} has neither {names}: expect little or no gain of INT8 over fp32 there")
    ]


def slow_cores(device: DeviceInfo, *, threads: int | None = None, pinned: Sequence[int] = ()) -> list[Cause]:
    """Cores that run far below their maximum: of those that work, which are the pinned ones, or else as many as there are
    threads, the fastest first (all by default)."""
    known = [core for core in device.cores if core.current_khz and core.max_khz and (not pinned or core.index in pinned)]
    known.sort(key=lambda core: (core.current_khz or 0) / (core.max_khz or 1), reverse=True)
    slow = [
        f"core {core.index} at {core.current_khz / 1000:.0f} of {core.max_khz / 1000:.0f} MHz"
        for core in known[:threads]
        if core.current_khz and core.max_khz and core.current_khz < SLOW_CORE_SHARE * core.max_khz
    ]
    if not slow:
        return []
    return [Cause("cores below their speed", f"{_some(slow)}: set the governor to performance, or pin the run with --cores")]


def _some(names: Sequence[str]) -> str:
    """Up to three names and how many more there are."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 3} more" if len(unique) > 3 else ""
    return ", ".join(unique[:3]) + more
