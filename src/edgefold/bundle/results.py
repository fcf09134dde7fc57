"""The ``results/`` folder of a bundle: what was checked and measured, as JSON and as a page for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgefold.artifact import Artifact, Format, Precision
from edgefold.bundle.manifest import RESULTS, ArtifactEntry, Manifest
from edgefold.errors import ArtifactError
from edgefold.report.content import Accuracy, Failure, Shipment, Variant
from edgefold.report.explanation import Explanation
from edgefold.report.table import Row, rows
from edgefold.results import Measurement, ParityReport, RuntimeAgreement, from_dict, to_dict

REPORT = "report.html"
SUMMARY = "summary.json"
EXPLANATIONS = "explanations.json"
# field of a variant -> (file, type); each file maps the name of a variant to its result
_FILES: dict[str, tuple[str, type[Any]]] = {
    "parity": ("parity.json", ParityReport),
    "accuracy": ("accuracy.json", Accuracy),
    "measurement": ("latency.json", Measurement),
    "failure": ("failures.json", Failure),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Summary:
    """The table of a shipment and what else its report says, without raw samples."""

    name: str
    date: str
    passed: bool
    rows: tuple[Row, ...]
    description: str = ""
    parameters: int | None = None
    notes: tuple[str, ...] = ()
    agreement: tuple[RuntimeAgreement, ...] = ()


def summarize(shipment: Shipment) -> Summary:
    """The summary of a shipment."""
    return Summary(
        name=shipment.name,
        date=shipment.date,
        passed=shipment.passed,
        rows=rows(shipment),
        description=shipment.description,
        parameters=shipment.parameters,
        notes=shipment.notes,
        agreement=shipment.agreement,
    )


def write_results(shipment: Shipment, root: Path) -> None:
    """Write ``results/`` below the bundle ``root``: the summary, one JSON file a kind of result, and the report."""
    from edgefold.report.page import render

    folder = root / RESULTS
    folder.mkdir(exist_ok=True)
    _write(folder / SUMMARY, to_dict(summarize(shipment)))
    for attribute, (file, _) in _FILES.items():
        found = [(variant.name, getattr(variant, attribute)) for variant in shipment.variants]
        _write(folder / file, {name: to_dict(result) for name, result in found if result is not None})
    _write(folder / EXPLANATIONS, {str(each.scheme): to_dict(each) for each in shipment.explanations})
    (folder / REPORT).write_text(render(shipment), encoding="utf-8")


def read_shipment(root: Path, manifest: Manifest) -> Shipment:
    """The shipment that a bundle holds: its manifest and its results put together.

    Raises:
        ArtifactError: a file in ``results/`` is missing or not what `write_results` writes.
    """
    summary = from_dict(Summary, _read(root / RESULTS / SUMMARY))
    found = {
        attribute: {name: from_dict(kind, value) for name, value in _read(root / RESULTS / file).items()}
        for attribute, (file, kind) in _FILES.items()
    }
    entries = {entry.name: entry for entry in manifest.artifacts}
    variants = []
    for row in summary.rows:
        entry = entries.get(row.name)
        variants.append(
            Variant(
                name=row.name,
                format=Format(row.format),
                precision=Precision(row.precision),
                artifact=None if entry is None else artifact_of(root, manifest, entry),
                lowering=None if entry is None else entry.lowering,
                **{attribute: values.get(row.name) for attribute, values in found.items()},
            )
        )
    return Shipment(
        name=manifest.name,
        variants=tuple(variants),
        fold=manifest.fold,
        date=manifest.created,
        description=manifest.description,
        parameters=summary.parameters,
        notes=summary.notes,
        agreement=summary.agreement,
        explanations=tuple(from_dict(Explanation, value) for value in _read(root / RESULTS / EXPLANATIONS).values()),
    )


def artifact_of(root: Path, manifest: Manifest, entry: ArtifactEntry) -> Artifact:
    """The artifact that an entry of a manifest stands for."""
    sha256 = next(file.sha256 for file in manifest.payload if file.path == entry.file)
    return Artifact(root / entry.file, entry.format, entry.precision, sha256, entry.inputs, entry.outputs)


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    remedy = "get a clean copy, or ship the model again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"bundle has no '{path.parent.name}/{path.name}'; get a complete copy, or ship the model again"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"'{path}' is not JSON ({error}); {remedy}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"'{path}' is not a JSON object; {remedy}")
    return data
