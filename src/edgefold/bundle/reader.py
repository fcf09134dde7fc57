"""Opens a bundle. Nothing of it is parsed before its size and SHA-256 are those that the manifest promises."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgefold.artifact import Artifact, sha256_of
from edgefold.bundle.archive import MAX_MANIFEST_BYTES, check_listing, extract_zip
from edgefold.bundle.manifest import MANIFEST, Manifest, parse_manifest
from edgefold.bundle.results import REPORT, artifact_of, read_shipment
from edgefold.bundle.writer import zip_path
from edgefold.errors import ArtifactError, DataError, UsageError, unknown_name
from edgefold.report.content import Shipment

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an artifact says about one image. ``outputs`` are float32, in torch's layout, one array an output."""

    outputs: tuple[NDArray[Any], ...]
    labels: tuple[str, ...] = field(default=(), repr=False)

    @property
    def index(self) -> int:
        """The class with the highest score.

        Raises:
            UsageError: the first output is not one score a class.
        """
        return self.top(1)[0][0]

    @property
    def label(self) -> str:
        """The label of `index`; the index itself where the bundle has no labels."""
        return self.top(1)[0][1]

    def top(self, count: int = 5) -> list[tuple[int, str, float]]:
        """The best classes: (index, label, score as the network gives it), best first.

        Raises:
            UsageError: the first output is not one score a class.
        """
        scores = self.outputs[0]
        if scores.ndim != 2 or scores.shape[0] != 1:
            raise UsageError(f"the first output has shape {scores.shape}, expected (1, classes); read `outputs` instead")
        best = scores[0].argsort()[::-1][:count]
        return [(int(i), self.labels[i] if i < len(self.labels) else str(i), float(scores[0, i])) for i in best]


class Bundle:
    """An opened bundle. A zip is unpacked to a temporary folder that lives as long as the object, or until `close`."""

    def __init__(self, path: Path, root: Path, manifest: Manifest, *, temporary: bool = False) -> None:
        self.path = path
        self.root = root
        self.manifest = manifest
        self._close = weakref.finalize(self, shutil.rmtree, root, ignore_errors=True) if temporary else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the artifacts, e.g. "tflite-int8"."""
        return tuple(entry.name for entry in self.manifest.artifacts)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts by name."""
        return {entry.name: artifact_of(self.root, self.manifest, entry) for entry in self.manifest.artifacts}

    @property
    def shipment(self) -> Shipment:
        """What was checked and measured when the bundle was made.

        Raises:
            ArtifactError: a file in ``results/`` is missing or not what edgefold writes.
        """
        return read_shipment(self.root, self.manifest)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "results" / REPORT

    @property
    def archive(self) -> Path:
        """The zip beside a bundle that is a folder, or the bundle itself."""
        return zip_path(self.path) if self.path.is_dir() else self.path

    def artifact(self, name: str) -> Artifact:
        """One artifact by name.

        Raises:
            UsageError: there is none of that name.
        """
        artifacts = self.artifacts
        if name not in artifacts:
            raise unknown_name("artifact", name, artifacts)
        return artifacts[name]

    def run(self, name: str, image: Any, *, threads: int = 1) -> Prediction:
        """Predict with one artifact, in its real runtime.

        ``image`` is prepared as the manifest says: uint8 pixels (H, W) or (H, W, C), a `PIL.Image`, or a float tensor that is
        prepared already. A bundle without preprocessing takes the network's own float inputs: an array, or a sequence of them.

        Raises:
            UsageError: there is no artifact of that name.
            DataError: the image does not fit.
            ModelError: inputs of another number or shape than the artifact takes.
            RuntimeFailure: the runtime broke.
        """
        from edgefold.runtime.session import run

        artifact = self.artifact(name)
        prepare = self.manifest.preprocessing
        inputs: Any = image if prepare is None else prepare(image)
        return Prediction(run(artifact, inputs, threads=threads), self.manifest.labels)

    def close(self) -> None:
        """Remove the temporary folder of a zip; a bundle that is a folder stays as it is."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load_bundle(path: Path | str) -> Bundle:
    """Open a bundle: a folder or a zip that `ship` wrote.

    Raises:
        DataError: there is nothing at ``path``.
        ArtifactError: not a bundle, a file is missing, added or changed, or a hostile archive.
    """
    path = Path(path)
    if path.is_dir():
        return Bundle(path, path, _check_folder(path))
    if not path.exists():
        raise DataError(f"bundle '{path}' does not exist; give a folder or zip that edgefold ship wrote")
    root = Path(tempfile.mkdtemp(prefix="edgefold-bundle-"))
    try:
        return Bundle(path, root, extract_zip(path, root), temporary=True)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _check_folder(root: Path) -> Manifest:
    file = root / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise ArtifactError(f"folder '{root}' has no {MANIFEST}; expected a bundle that edgefold ship wrote")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"manifest of bundle '{root}' is larger than {MAX_MANIFEST_BYTES} bytes; it is not a real one")
    manifest = parse_manifest(file.read_bytes(), str(root))
    check_listing(manifest, _sizes(root), root)
    for promised in manifest.payload:
        if sha256_of(root / promised.path) != promised.sha256:
            raise ArtifactError(
                f"file '{promised.path}' of bundle '{root}' has other content than its manifest promises; get a clean copy"
            )
    return manifest


def _sizes(root: Path) -> dict[str, int]:
    """The size of every file below a folder, by its path; links are refused, since they could lead anywhere."""
    sizes = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink():
                raise ArtifactError(f"'{path.relative_to(root)}' in bundle '{root}' is a link; a bundle holds plain files only")
            if name in files:
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return sizes
