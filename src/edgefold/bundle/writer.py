"""Writes a bundle: a directory and the zip of it, each of which appears whole or not at all.

DIR/manifest.json            what an app must know
DIR/README.md                the model card
DIR/artifacts/               one file a format and precision
DIR/results/                 parity.json, accuracy.json, latency.json, failures.json, report.html
DIR.zip                      the same files
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import Artifact, sha256_of
from edgefold.errors import OutputError
from edgefold.preprocess import Preprocessing
from edgefold.report.content import Shipment, Variant

if TYPE_CHECKING:
    from edgefold.bundle.manifest import Calibration, Manifest, PayloadFile, Scales

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Contract:
    """What the app and the artifacts agree on, beside the files' own inputs and outputs."""

    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    scales: tuple[Scales, ...] = ()
    calibration: Calibration | None = None
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version
    license: str = ""
    card_notes: tuple[str, ...] = ()  # sentences for the model card: data, training, limits


def zip_path(out: Path) -> Path:
    """Where the zip of the bundle ``out`` is."""
    return out.with_name(f"{out.name}.zip")


def check_output(out: Path, *, force: bool = False) -> None:
    """Refuse an output before hours are spent on what cannot be written.

    Raises:
        OutputError: it exists and ``force`` is not set, it exists and is no bundle, or its folder cannot be written.
    """
    from edgefold.bundle.manifest import MANIFEST

    for path in (out, zip_path(out)):
        if os.path.lexists(path) and not force:
            raise OutputError(f"output '{path}' exists already; choose another name or give --force")
    # --force replaces a bundle; it is no licence to delete whatever stands there.
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())):
        raise OutputError(f"output '{out}' exists and is not a bundle; remove it yourself or choose another name")
    if zip_path(out).is_dir():
        raise OutputError(f"output '{zip_path(out)}' is a folder, expected a file; remove it yourself or choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(f"output '{out}' cannot be written: {error.strerror}; choose a folder that you may write to") from error


def write_bundle(shipment: Shipment, contract: Contract, out: Path, *, force: bool = False) -> Manifest:
    """Write the bundle ``out`` and the zip of it.

    The artifacts of the shipment are copied; their own files are left alone.

    Raises:
        OutputError: as `check_output`.
    """
    from edgefold.bundle.archive import write_zip
    from edgefold.bundle.card import model_card
    from edgefold.bundle.manifest import MANIFEST
    from edgefold.bundle.results import write_results
    from edgefold.report.table import slug

    check_output(out, force=force)
    with _staging(out) as staging:
        folder = staging / "bundle"
        (folder / "artifacts").mkdir(parents=True)
        placed: list[tuple[Variant, Artifact, Path]] = []
        for variant in shipment.variants:
            if variant.artifact is not None:
                target = folder / "artifacts" / f"{slug(shipment.name)}-{variant.precision}{variant.format.suffix}"
                shutil.copyfile(variant.artifact.path, target)
                placed.append((variant, variant.artifact, target))
        (folder / CARD).write_text(model_card(shipment, contract), encoding="utf-8")
        manifest = _manifest(shipment, contract, folder, placed)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        write_results(shipment, folder)
        archive = staging / "bundle.zip"
        write_zip(folder, archive)
        _swap(folder, out)
        archive.replace(zip_path(out))
    return manifest


def _manifest(shipment: Shipment, contract: Contract, folder: Path, placed: list[tuple[Variant, Artifact, Path]]) -> Manifest:
    from importlib.metadata import version

    from edgefold.bundle.manifest import ArtifactEntry, Manifest

    entries = tuple(
        ArtifactEntry(
            name=variant.name,
            file=target.relative_to(folder).as_posix(),
            format=artifact.format,
            precision=artifact.precision,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            lowering=variant.lowering,
        )
        for variant, artifact, target in placed
    )
    return Manifest(
        name=shipment.name,
        description=shipment.description,
        created=shipment.date,
        producer=f"edgefold {version('edgefold')}",
        artifacts=entries,
        preprocessing=contract.preprocessing,
        labels=contract.labels,
        scales=contract.scales,
        calibration=contract.calibration,
        fold=shipment.fold,
        tools=dict(contract.tools),
        payload=tuple(_payload(path, folder) for path in [*(target for *_, target in placed), folder / CARD]),
    )


def _payload(path: Path, folder: Path) -> PayloadFile:
    from edgefold.bundle.manifest import PayloadFile

    return PayloadFile(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of(path))


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A private folder beside ``out``, on the same file system, that is gone afterwards."""
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(folder: Path, out: Path) -> None:
    """Put ``folder`` in the place of ``out``; what was there comes back if that fails."""
    if not out.exists():
        folder.rename(out)
        return
    old = folder.with_name("old")  # vanishes with the staging folder
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
