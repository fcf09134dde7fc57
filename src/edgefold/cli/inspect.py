"""`edgefold inspect`: what is in an artifact or a bundle?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgefold.cli.options import Json, Target

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import Artifact, TensorSpec
    from edgefold.bundle.manifest import Manifest


def inspect(target: Target, as_json: Json = False) -> None:
    """Show the inputs, outputs and contents of a file or a bundle."""
    from edgefold.cli.output import output
    from edgefold.cli.targets import artifact_at, is_bundle, opened

    with output(as_json) as out:
        if is_bundle(target):
            with opened(target) as bundle:
                manifest = bundle.manifest
            out.show(manifest.model_dump(mode="json", by_alias=True), lambda: _bundle(manifest))
        else:
            found = artifact_at(target)
            out.show(found, lambda: _file(found))


def _file(found: Artifact) -> Iterable[RenderableType]:
    from edgefold.report.table import size

    yield f"{found.path}: {found.format}, {found.precision}, {size(found.size_bytes)}, SHA-256 {found.sha256}"
    yield _tensors(found.inputs, found.outputs)


def _tensors(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> RenderableType:
    from edgefold.cli.output import table

    ends = [*(("input", spec) for spec in inputs), *(("output", spec) for spec in outputs)]
    lines = [
        (
            kind,
            spec.name,
            "×".join("any" if side < 0 else str(side) for side in spec.shape),
            spec.dtype,
            spec.layout,
            "" if spec.scale is None else f"{spec.scale:.6g}",
            "" if spec.zero_point is None else str(spec.zero_point),
        )
        for kind, spec in ends
    ]
    return table(("", "name", "shape", "type", "layout", "scale", "zero point"), lines, "lllllrr")


def _bundle(manifest: Manifest) -> Iterable[RenderableType]:
    from edgefold.cli.output import table
    from edgefold.report.table import size

    yield f"{manifest.name}: {manifest.description or 'a bundle'}; made by {manifest.producer} on {manifest.created}"
    files = {file.path: file for file in manifest.payload}
    yield table(
        ("artifact", "file", "size", "SHA-256"),
        [
            (entry.name, entry.file, size(files[entry.file].size_bytes), files[entry.file].sha256[:16])
            for entry in manifest.artifacts
        ],
        "llrl",
    )
    prepare = manifest.preprocessing
    if prepare is not None:
        formula = f"(pixel / {prepare.divisor:g} − {prepare.mean}) / {prepare.std}"
        yield f"image: {prepare.height}×{prepare.width} {prepare.colour}, {formula}, resize {prepare.resize}"
    if manifest.labels:
        yield f"labels: {', '.join(manifest.labels)}"
    if manifest.calibration is not None:
        kind = "random data" if manifest.calibration.random else manifest.calibration.source or "data given by the caller"
        yield f"calibration: {manifest.calibration.samples} samples of {kind}"
    yield f"tools: {', '.join(f'{name} {version}' for name, version in manifest.tools.items())}"
