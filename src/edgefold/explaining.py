"""Explains an integer scheme: which layers lose accuracy, and whether INT8 saves time in each runtime on this CPU, and why.

Accuracy is computed in torch (`edgefold.quantize.sensitivity`). Time comes from the files themselves: what the runtime makes of
them, how long they take on the device, and, where a runtime tells it, the time of each op.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import Artifact, Format, Precision
from edgefold.errors import EdgefoldError
from edgefold.report.explanation import Explanation, RuntimeOutlook, SlowOp
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.device_bench import BenchOptions
    from edgefold.device_bench.opprofile import OpProfile, OpTime
    from edgefold.export.inspectors.base import Inspection
    from edgefold.export.plan import Lowering
    from edgefold.export.program import Program, QuantizedProgram
    from edgefold.report.content import Variant
    from edgefold.results import DeviceInfo

JUDGED_SAMPLES = 16
SMALL_MACS = 3_000_000  # below, what an op costs beside its arithmetic decides
SLOW_SHARE = 0.02  # of the time, from which a module is worth a line
_TOP = 8
_NAMED = 6


def explain_accuracy(
    program: QuantizedProgram,
    samples: Sequence[tuple[Tensor, ...]],
    device: DeviceInfo,
    runtimes: Iterable[RuntimeOutlook] = (),
    *,
    progress: Callable[[], None] = lambda: None,
) -> Explanation:
    """The explanation of a calibrated network, with the outlook of the runtimes that are known already.

    Args:
        program: the network and its scales.
        samples: inputs of the network; `JUDGED_SAMPLES` of them are used.
        device: whose CPU shall run it.
        runtimes: see `outlook`.
        progress: called after each layer.
    """
    from edgefold.device_bench.outlook import int8_outlook
    from edgefold.quantize.sensitivity import analyse

    judged = [program.takes(sample) for sample in samples[:: max(1, len(samples) // JUDGED_SAMPLES)][:JUDGED_SAMPLES]]
    pays, reason = int8_outlook(device.machine, frozenset(device.features), integer=scheme_of(program.scheme).integer)
    return Explanation(
        scheme=program.scheme,
        samples=len(judged),
        observer=program.table.observer,
        sensitivity=analyse(program.canonical.graph, program.table, judged, progress=progress),
        cpu=device.cpu,
        cpu_pays=pays,
        cpu_reason=reason,
        runtimes=tuple(runtimes),
        float_layers=program.float_layers,
    )


def measure_outlook(
    format: Format,
    folded: Program,
    program: QuantizedProgram,
    device: str,
    options: BenchOptions,
    *,
    choices: Mapping[str, Lowering] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> RuntimeOutlook:
    """Writes the network in float and in the scheme, and times both on a device, as a whole and op by op.

    ``choices`` says how each layer of the integer file is computed, by module path; by default as is fastest. What fails is in
    the outlook's ``failure``.
    """
    from edgefold.device_bench import bench
    from edgefold.export.emitters.base import EmitOptions, get_emitter
    from edgefold.export.inspect import inspect
    from edgefold.export.lower.lower import lower

    with tempfile.TemporaryDirectory(prefix="edgefold-explain-") as folder:
        try:
            artifacts = []
            for source, precision in ((folded, Precision.FP32), (program.program, program.scheme)):
                progress(f"writing {format} in {precision}")
                agreed = None if precision is Precision.FP32 else choices
                whole = agreed is not None
                lowered = lower(source, format=format, precision=precision, lowering=agreed or "auto", device=device, whole=whole)
                target = Path(folder) / f"{precision}{format.suffix}"
                artifacts.append(get_emitter(format).emit(lowered, EmitOptions(), target))
            exact, quantized = artifacts
            inspection = inspect(quantized.path)
            progress(f"measuring {format} on {device}")
            medians = [bench(artifact, device, options=options).median_ns for artifact in artifacts]
        except EdgefoldError as error:
            return RuntimeOutlook(format, None, 0, (), failure=str(error))
        before, after = (_profiled(artifact, device, options) for artifact in (exact, quantized))
    return outlook(format, inspection, medians[0], medians[1], before, after)


def outlooks(variants: Sequence[Variant], scheme: Precision) -> tuple[RuntimeOutlook, ...]:
    """The outlook of each runtime from the variants of a shipment: their files and what was measured."""
    from edgefold.export.inspect import inspect

    found = []
    exact = {variant.format: variant for variant in variants if variant.precision is Precision.FP32}
    for variant in variants:
        if variant.precision is not scheme or variant.artifact is None:
            continue
        base = exact.get(variant.format)
        times = [None if v is None or v.measurement is None else v.measurement.median_ns for v in (base, variant)]
        try:
            found.append(outlook(variant.format, inspect(variant.artifact.path), times[0], times[1]))
        except EdgefoldError as error:
            found.append(RuntimeOutlook(variant.format, None, 0, (), failure=str(error)))
    return tuple(found)


def outlook(
    format: Format,
    inspection: Inspection,
    float_ns: float | None,
    integer_ns: float | None,
    before: OpProfile | None = None,
    after: OpProfile | None = None,
) -> RuntimeOutlook:
    """What a file's inspection, its times and its profile (``after``; ``before`` is that of the float file) say together."""
    slow = () if after is None else slow_ops(after, before)
    return RuntimeOutlook(
        format=format,
        integer_mac_share=inspection.integer_mac_share,
        conversions=inspection.conversions_inside,
        fallback=inspection.fallback_modules,
        float_ns=float_ns,
        integer_ns=integer_ns,
        slow=slow,
        reasons=tuple(_reasons(inspection, slow)),
    )


def slow_ops(after: OpProfile, before: OpProfile | None) -> tuple[SlowOp, ...]:
    """Where the INT8 file loses time, the dearest first: conversions, and modules that take longer than in the float file."""
    from edgefold.device_bench.diagnosis import CONVERSION

    total = sum(op.ns for op in after.ops) or 1
    float_times = _by_module(() if before is None else before.ops)
    found = []
    for module, (ops, ns) in _by_module(after.ops).items():
        float_ns = float_times[module][1] if module in float_times else None
        conversions = [op for op in ops if CONVERSION.search(op)]
        if len(conversions) == len(ops):
            why = "converts between float and integers"
        elif float_ns is not None and ns > float_ns:
            why = "its INT8 kernel is slower than the float one"
            why += f", and it converts ({', '.join(conversions)})" if conversions else ""
        else:
            continue
        if ns / total >= SLOW_SHARE:
            found.append(SlowOp(module, " + ".join(ops), ns, ns / total, float_ns, why))
    return tuple(sorted(found, key=lambda op: -op.ns)[:_TOP])


def _by_module(ops: Sequence[OpTime]) -> dict[str, tuple[tuple[str, ...], int]]:
    """The ops and the time of each module; ops without one are taken together by their kind."""
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    for op in ops:
        key = op.module or op.op
        names, ns = found.get(key, ((), 0))
        found[key] = (names if op.op in names else (*names, op.op), ns + op.ns)
    return found


def _reasons(inspection: Inspection, slow: Sequence[SlowOp]) -> Iterable[str]:
    share = inspection.integer_mac_share
    lost = sum(op.ns - (op.float_ns or 0) for op in slow)
    if slow:
        names = ", ".join(f"'{op.name}'" for op in slow[:3])
        total = round(slow[0].ns / slow[0].share)
        yield f"{names} cost{'s' if len(slow) == 1 else ''} {lost / total:.0%} of the time more than in float"
    if share is not None and share < 0.99:
        where = ", ".join(inspection.float_mac_modules[:3])
        yield f"only {share:.0%} of the multiply-adds run in integer kernels (in float: {where})"
    if inspection.fallback_modules:
        yield f"{len(inspection.fallback_modules)} ops run outside the delegate: {', '.join(inspection.fallback_modules[:3])}"
    if inspection.float_modules:
        more = len(inspection.float_modules) - _NAMED
        names = ", ".join(inspection.float_modules[:_NAMED])
        yield f"computed in float: {names}{f' and {more} more' if more > 0 else ''}"
    if inspection.conversions_inside:
        yield f"{inspection.conversions_inside} conversions between float and integers stand inside the file"
    if inspection.macs < SMALL_MACS:
        yield f"the network has only {inspection.macs / 1e6:.1f} million multiply-adds: what an op costs beside them decides"


def _profiled(artifact: Artifact, device: str, options: BenchOptions) -> OpProfile | None:
    """The times by op; ``None`` where the runtime or the device does not tell."""
    from edgefold.device_bench import profile

    if device == "fake":
        return None
    try:
        return profile(artifact, device, options)
    except EdgefoldError:  # a device without Python: the outlook goes without
        return None
