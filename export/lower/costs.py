"""What a lowering of a layer costs.

A `CostModel` is asked for a time and may not know it. `CostTable` knows what has been measured on a device; it is
plain JSON (``edgefold.CostTable/1``) and is only valid for the runtime versions that it names. `estimate_ns` always
answers, and what it says is marked `estimated`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, Self

from edgefold.artifact import Format, Precision
from edgefold.errors import ArtifactError, DataError
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.plan import Lowering

SCHEMA: Final = "edgefold.CostTable/1"
Key = tuple[str, Lowering, Format, Precision]


class CostModel(Protocol):
    """Says how long a lowering of a layer takes, as far as it knows."""

    @property
    def source(self) -> str:
        """Where the times are from, e.g. "measured on host"."""
        ...

    def cost_ns(self, geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> float | None:
        """The time of one layer for one sample on one thread, None where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class CostTable:
    """Measured times of lowerings on one device.

    ``runtimes`` maps a format to the runtime that was measured ("onnxruntime 1.32.0").
    """

    source: str
    cpu: str
    threads: int
    runtimes: dict[str, str]
    times_ns: dict[Key, float] = field(default_factory=dict)

    def cost_ns(self, geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> float | None:
        """The measured time of exactly this layer, None where it was not measured."""
        return self.times_ns.get((str(geometry), geometry.form(lowering), format, precision))

    def to_json(self) -> str:
        """The table as JSON text, one line a layer and lowering."""
        head = {"schema": SCHEMA, "source": self.source, "cpu": self.cpu, "threads": self.threads, "runtimes": self.runtimes}
        rows = [
            json.dumps([layer, lowering.value, format.value, precision.value, round(ns)])
            for (layer, lowering, format, precision), ns in sorted(self.times_ns.items())
        ]
        return json.dumps(head)[:-1] + ', "times_ns": [\n' + ",\n".join(rows) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """The table that `to_json` wrote; ``name`` stands for it in messages.

        Raises:
            ArtifactError: the text is not such a table.
        """
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise ArtifactError(f"cost table '{name}' has schema '{data['schema']}', expected '{SCHEMA}'; measure it again")
            times = {
                (str(LayerGeometry.parse(layer)), Lowering(lowering), Format(format), Precision(precision)): float(ns)
                for layer, lowering, format, precision, ns in data["times_ns"]
                if ns > 0  # a clock that stood still has measured nothing
            }
            return cls(data["source"], data["cpu"], int(data["threads"]), dict(data["runtimes"]), times)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"cost table '{name}' is malformed ({error!r}); measure it again") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """The table in a file.

        Raises:
            DataError: the file cannot be read.
            ArtifactError: it is not a cost table.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cost table '{path}' cannot be read ({error}); give a file that 'edgefold fold --costs' wrote"
            ) from error
        return cls.from_json(text, str(path))

    def without(self, formats: Collection[Format]) -> CostTable:
        """This table without the times of some formats."""
        kept = {key: ns for key, ns in self.times_ns.items() if key[2] not in formats}
        return replace(
            self, runtimes={name: runtime for name, runtime in self.runtimes.items() if name not in formats}, times_ns=kept
        )

    def merged(self, other: CostTable) -> CostTable:
        """This table with the times of another one of the same device added; the other one's win."""
        return CostTable(
            self.source, self.cpu, self.threads, {**self.runtimes, **other.runtimes}, {**self.times_ns, **other.times_ns}
        )


def known_cost(
    models: Iterable[CostModel], geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision
) -> tuple[float, str] | None:
    """The first model's answer and its source."""
    for model in models:
        cost = model.cost_ns(geometry, lowering, format, precision)
        if cost is not None:
            return cost, model.source
    return None
