"""What `edgefold fold --costs` measures, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgefold.artifact import Format, Precision

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.device_bench.costs import MeasuredCosts
    from edgefold.export.fold import FoldResult
    from edgefold.export.lower.costs import CostTable
    from edgefold.export.lower.geometry import LayerGeometry


@dataclass(frozen=True)
class LayerTable:
    """The times of one network's layers on a device; ``found.table`` may hold those of other networks too."""

    device: str
    layers: tuple[LayerGeometry, ...]
    found: MeasuredCosts
    path: str

    def table(self) -> CostTable:
        """The times of these layers alone."""
        from dataclasses import replace

        names = {str(layer) for layer in self.layers}
        times = {key: ns for key, ns in self.found.table.times_ns.items() if key[0] in names}
        return replace(self.found.table, times_ns=times)

    def to_json(self) -> dict[str, Any]:
        """Plain data: the table in its own schema, where it is kept, and what was left out."""
        noisy = [
            {"layer": str(one.geometry), "format": one.format, "precision": one.precision, "noise": one.noise}
            for one in self.found.noisy
        ]
        counts = {"measured": self.found.measured, "known": self.found.known, "noisy": noisy}
        return {"costs": json.loads(self.table().to_json()), "kept_in": self.path, **counts}


def measure(
    folded: FoldResult, device: str, formats: Sequence[Format] | None, precisions: Sequence[Precision] | None, *, again: bool
) -> LayerTable:
    """Measures the layers of a network that the device's table lacks."""
    from edgefold.cli.progress import stages
    from edgefold.device_bench.costs import PRECISIONS, layer_geometries, measure_costs
    from edgefold.export.lower.tables.cache import table_path

    layers = tuple(dict.fromkeys(layer_geometries(folded.program)))
    with stages() as progress:
        found = measure_costs(
            layers,
            device,
            formats=tuple(formats or Format),
            precisions=tuple(precisions or PRECISIONS),
            again=again,
            stage=lambda steps: progress.stage(f"measure on {device}", steps),
            progress=progress.step,
        )
    return LayerTable(device, layers, found, str(table_path(device)))


def measured(found: LayerTable) -> Iterable[RenderableType]:
    """The times as a table, the fastest of each layer marked, and what to know about them."""
    from edgefold.cli.output import table
    from edgefold.export.plan import Lowering
    from edgefold.report.table import duration

    if not found.layers:
        yield "No layer of this network can be computed in more than one way: there is nothing to measure."
        return
    rows: dict[tuple[str, str, str], dict[Lowering, float]] = {}
    for (layer, lowering, form, precision), ns in found.table().times_ns.items():
        rows.setdefault((layer, form.value, precision.value), {})[lowering] = ns
    names = (Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT)

    def cell(times: dict[Lowering, float], name: Lowering) -> str:
        if name not in times:
            return ""
        return f"{'* ' if times[name] == min(times.values()) else ''}{duration(times[name])}"

    yield table(
        ("layer", "format", "precision", *names),
        [(*key, *(cell(times, name) for name in names)) for key, times in sorted(rows.items())],
        "wllrrr",
        title=f"One layer, one sample, one thread on {found.table().cpu or found.device}",
    )
    yield f"{found.found.measured} measured, {found.found.known} known before; kept in {found.path}"
    for one in found.found.noisy:
        layer = f"{one.geometry} in {one.format} {one.precision}"
        yield f"left out, too noisy ({one.noise:.0%}): {layer}; run it again on an idle device"
