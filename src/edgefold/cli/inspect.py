"""`edgefold inspect`: what is in an artifact or a bundle?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from edgefold.cli.options import Json, Target
from edgefold.results import to_dict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgefold.artifact import Artifact, TensorSpec
    from edgefold.bundle.manifest import Manifest
    from edgefold.export.inspectors.base import Inspection

_LABELS_SHOWN: Final = 20  # of a thousand classes nobody reads all; the manifest has them


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
            from edgefold.export.inspect import inspect as read

            found = artifact_at(target)
            inside = read(target)
            out.show(
                {**to_dict(inside), "sha256": found.sha256, "inputs": _specs(found.inputs), "outputs": _specs(found.outputs)},
                lambda: _file(found, inside),
            )


def _specs(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [asdict(spec) for spec in specs]


def _file(found: Artifact, inside: Inspection) -> Iterable[RenderableType]:
    from edgefold.report.plan_pictures import count
    from edgefold.report.table import percent, size

    precision = inside.precision or "precision not stated"
    yield f"{found.path}: {found.format}, {precision}, {size(found.size_bytes)}, SHA-256 {found.sha256}"
    if inside.random_calibration:
        yield "calibrated with random data: INT8 accuracy is unknown"
    yield _tensors(found.inputs, found.outputs)
    yield f"ops: {', '.join(f'{number} {name}' for name, number in inside.ops.items())}"
    share = "" if inside.integer_mac_share is None else f", {percent(inside.integer_mac_share)} of them in integers"
    if inside.dynamic_macs:
        share += f" ({percent(inside.dynamic_macs / inside.macs)} with activations quantized at run time)"
    yield f"{inside.convs} convolutions; {count(inside.macs)} multiply-adds{share}"
    yield f"{inside.integer_ops} integer ops, {inside.float_ops} float ops, {inside.conversions_inside} conversions between them"
    if inside.float_modules:
        yield f"in float: {', '.join(inside.float_modules)}"
    if inside.conversion_modules:
        yield f"conversions: {', '.join(inside.conversion_modules)}"
    if inside.accelerated_share is not None:
        calls = "1 call" if inside.partitions == 1 else f"{inside.partitions} calls"
        yield f"{percent(inside.accelerated_share)} of the ops in {calls} of the delegate"
    if inside.fallback_modules:
        yield f"outside the delegate: {', '.join(inside.fallback_modules)}"


def _tensors(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> RenderableType:
    from edgefold.cli.output import table

    ends = [*(("input", spec) for spec in inputs), *(("output", spec) for spec in outputs)]
    lines = [
        (
            kind,
            spec.name,
            spec.shape_text,
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
        yield f"image: {prepare.height}×{prepare.width}, (pixel / {prepare.divisor:g} − mean) / std with {prepare.text}"
    if manifest.labels:
        more = len(manifest.labels) - _LABELS_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        yield f"labels: {', '.join(manifest.labels[:_LABELS_SHOWN])}{rest}"
    if manifest.calibration is not None:
        kind = "random data" if manifest.calibration.random else manifest.calibration.source or "data given by the caller"
        yield f"calibration: {manifest.calibration.samples} samples of {kind}"
        yield from (f"Note: {text}" for text in manifest.calibration.findings)
    yield f"tools: {', '.join(f'{name} {version}' for name, version in manifest.tools.items())}"
