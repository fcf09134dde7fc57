"""Where the INT8 results of the runtimes differ, for `edgefold verify --drift`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from edgefold.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import Artifact, Format, Precision
    from edgefold.batch import Batch
    from edgefold.bundle.manifest import Manifest
    from edgefold.export.plan import LoweringPlan
    from edgefold.export.program import QuantizedProgram
    from edgefold.quantize.drift import Difference, DriftReport, DriftRow

DRIFT_SAMPLES = 8


def integer_formats(artifacts: Mapping[str, Artifact]) -> dict[Precision, tuple[Format, ...]]:
    """The formats of the integer artifacts, by precision.

    Raises:
        UsageError: there is no integer artifact.
    """
    from edgefold.schemes import scheme_of

    found: dict[Precision, tuple[Format, ...]] = {}
    for artifact in artifacts.values():
        if scheme_of(artifact.precision).calibrated:
            found[artifact.precision] = (*found.get(artifact.precision, ()), artifact.format)
    if not found:
        kinds = ", ".join(sorted({artifact.precision for artifact in artifacts.values()}))
        raise UsageError(f"--drift compares integer artifacts, found only {kinds}; give a bundle or a file of precision int8")
    return found


def recorded_plans(manifest: Manifest | None, precision: Precision) -> dict[Format, LoweringPlan]:
    """How each layer of a bundle's artifacts is computed, by format."""
    return {
        entry.format: entry.lowering
        for entry in (() if manifest is None else manifest.artifacts)
        if entry.precision is precision and entry.lowering is not None
    }


def measure(
    program: QuantizedProgram, inputs: Batch, formats: tuple[Format, ...], plans: Mapping[Format, LoweringPlan]
) -> DriftReport:
    """The drift map of the artifacts that were made of ``program``."""
    from edgefold.batch import as_tensors
    from edgefold.export.drift import measure_drift

    few = tuple(tensor[:DRIFT_SAMPLES] for tensor in as_tensors(inputs))
    return measure_drift(program, few, formats=formats, plans=plans)


def drifted(report: DriftReport, precision: Precision) -> Iterable[RenderableType]:
    """The values at which runtimes differ, and how many they agree on."""
    from edgefold.cli.output import table

    runtimes = report.runtimes[1:] if len(report.runtimes) > 2 else report.runtimes  # the first is torch
    pairs = list(combinations(runtimes, 2))

    def shown(row: DriftRow) -> list[Difference]:
        return [one for one in row.differences if (one.first, one.second) in pairs]

    rows = [row for row in report.rows if any(one.max_steps for one in shown(row))]
    if rows:
        yield table(
            ("value", "op", *(f"{first} – {second}" for first, second in pairs), "cause"),
            [(row.name, row.op, *(_difference(one) for one in shown(row)), row.cause) for row in rows],
            "ll" + "r" * len(pairs) + "w",
            title=f"{precision}: where the runtimes differ, on {report.samples} samples",
        )
    for first, second in pairs:
        found = report.counts(first, second)
        yield (
            f"{precision}, {first} – {second}: of {len(report.rows)} quantized values {found['identical']} bit-identical, "
            f"{found['one step']} at most 1 LSB apart, {found['more']} more"
        )


def _difference(one: Difference) -> str:
    if not one.max_steps:
        return "identical"
    return f"{'begins: ' if one.begins else ''}{one.max_steps} LSB, {one.share * 100:.2g} %"
