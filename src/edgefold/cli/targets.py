"""What a command was pointed at: one model file, or a bundle (a folder or a zip) with several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.artifact import Artifact
from edgefold.errors import ArtifactError, UsageError, unknown_name

if TYPE_CHECKING:
    from edgefold.bundle.manifest import Manifest
    from edgefold.bundle.reader import Bundle


def is_bundle(path: Path) -> bool:
    """A folder or a zip: what a bundle can be."""
    return path.is_dir() or path.suffix == ".zip"


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """A bundle, checked; closed in the end."""
    from edgefold.bundle.reader import load_bundle

    with load_bundle(path) as bundle:
        yield bundle


@contextmanager
def artifacts_of(path: Path, wanted: list[str] | None) -> Iterator[dict[str, Artifact]]:
    """The artifacts at ``path`` by name: of a bundle those that are wanted (all by default), or the one file.

    Raises:
        UsageError: a bundle has no artifact of that name, or names were given for a file.
        ArtifactError: not a bundle, not a model file, damaged, or there is no such file.
    """
    if not is_bundle(path):
        if wanted:
            raise UsageError(f"'{path}' is one file; --artifact chooses among those of a bundle")
        yield {path.name: artifact_at(path)}
        return
    with opened(path) as bundle:
        found = bundle.artifacts
        for name in wanted or ():
            if name not in found:
                raise unknown_name("artifact", name, found)
        if not found:
            raise ArtifactError(f"bundle '{path}' holds no artifact; ship the model again")
        yield {name: found[name] for name in (wanted or found)}


def manifest_of(path: Path) -> Manifest | None:
    """The manifest of a bundle; ``None`` for a file."""
    if not is_bundle(path):
        return None
    with opened(path) as bundle:
        return bundle.manifest


def artifact_at(path: Path) -> Artifact:
    """The artifact in a file, as the file itself declares it.

    Raises:
        ArtifactError: no such file, or not a model file.
    """
    from edgefold.artifact import Precision, sha256_of
    from edgefold.runtime import describe

    if not path.exists():
        raise ArtifactError(f"file '{path}' does not exist; give an .onnx, .tflite or .pte file, or a bundle")
    if path.is_dir():
        raise ArtifactError(f"'{path}' is a folder; give an .onnx, .tflite or .pte file")
    found = describe(path)
    # A file of another maker does not say how it was quantized; as a whole it takes and gives what its specs say.
    return Artifact(path, found.format, found.precision or Precision.FP32, sha256_of(path), found.inputs, found.outputs)
