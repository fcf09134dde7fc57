"""`edgefold train --qat`: a network of any source, trained on as INT8."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgefold.cli.output import Output
    from edgefold.cli.sources import ModelChoice
    from edgefold.qat_training import QatOptions, QatResult


def train_as_int8(
    choice: ModelChoice, data: tuple[str | None, int | None], folder: Path, options: QatOptions, out: Output
) -> None:
    """Trains, and writes ``NAME-qat.safetensors`` and ``NAME-qat.json`` into a folder; data is (source, side of its images)."""
    from edgefold.artifact import atomic_path
    from edgefold.cli.output import progress
    from edgefold.models.data import load_training_data
    from edgefold.pipeline import check_free
    from edgefold.qat_training import train_qat
    from edgefold.results import to_json
    from edgefold.trained import save_trained

    target = folder / f"{choice.short_name}-qat.safetensors"
    for path in (target, target.with_suffix(".json")):
        check_free(path, force=False)
    with progress(f"loading {choice.name}") as say:
        source = load_training_data(data[0], image_size=data[1])
        result, trained = train_qat(choice.load(), source, options, progress=say)
    save_trained(trained, target)
    with atomic_path(target.with_suffix(".json")) as temporary:
        temporary.write_text(to_json(result) + "\n", encoding="utf-8")
    out.show(result, lambda: _trained(result, target))


def _trained(result: QatResult, target: Path) -> Iterable[str]:
    def percent(share: float) -> str:
        return f"{share * 100:.2f} %"

    yield (
        f"{result.network} on {result.test_images:,} test images of {result.data}: float {percent(result.float_top1)}, "
        f"INT8 calibrated {percent(result.int8_top1)}, INT8 trained {percent(result.qat_top1)} ({result.time_s:.0f} s)"
    )
    yield from (f"Note: {finding}" for finding in result.findings)
    yield f"weights and scales: {target} (give it to ship, export or quantize with --qat)"
