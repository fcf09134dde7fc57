"""What a recipe is refused for before its first stage, where the stages themselves would say so late or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgefold.errors import UsageError

if TYPE_CHECKING:
    from edgefold.recipe.schema import DistillSection, PruneSection


def check_device(device: str | None, where: str) -> None:
    """Refuses what is no device; nothing is contacted.

    Raises:
        UsageError: its scheme or name is unknown, or its URL cannot be used.
    """
    from edgefold.device_bench.runners import open_runner

    if device is None:
        return
    try:
        open_runner(device)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def check_trained(train: Mapping[str, Any], prune: PruneSection | None, distill: DistillSection | None) -> None:
    """Refuses options of training where nothing is trained; a stage that is only skipped counts, and the seed is for more.

    Raises:
        UsageError: see there.
    """
    given = [name for name in train if name != "seed"]
    if not given or distill is not None or (prune is not None and prune.epochs > 0):
        return
    why = "nothing is trained: there is neither [prune] nor [distill]; leave it out"
    if prune is not None:
        why = "nothing is trained with epochs 0; leave it out, or give at least 1 epoch"
    raise UsageError(f"training option {given[0]} is given, and {why}")
