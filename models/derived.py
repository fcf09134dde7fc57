"""A network that was made of another source: channels or blocks removed, weights trained further; kept as data, without code.

    FOLDER/network.json          a `Derived`: the source, and what was removed from it
    FOLDER/weights.safetensors   the weights of what is left

The structure is made again by removing the same from the source, so that no code is stored and nothing that is loaded
can run any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from edgefold.artifact import atomic_path, sha256_of
from edgefold.errors import ArtifactError
from edgefold.models.fingerprint import WEIGHTS_NAME
from edgefold.models.packing import load_weights, save_weights
from edgefold.models.prune import Removed
from edgefold.models.prune_graph import remove_channels
from edgefold.models.remove_blocks import RemovedBlock, without_block
from edgefold.results import from_dict, to_json

RECORD_NAME: Final = "network.json"


@dataclass(frozen=True, slots=True)
class Derived:
    """How a network follows from its source. ``accuracy`` is its top-1 share on the test images of its training data."""

    source: str
    kwargs: dict[str, Any]
    removed: tuple[Removed | RemovedBlock, ...]
    weights_sha256: str
    history: tuple[str, ...] = ()  # one sentence a stage
    accuracy: float | None = None


def write_derived(
    folder: Path,
    module: nn.Module,
    source: str,
    kwargs: dict[str, Any],
    removed: Sequence[Removed | RemovedBlock],
    history: Sequence[str] = (),
    accuracy: float | None = None,
) -> Path:
    """Writes a network into a folder; the path of its record, which is a source of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module, folder / WEIGHTS_NAME)
    record = Derived(source, kwargs, tuple(removed), sha256_of(folder / WEIGHTS_NAME), tuple(history), accuracy)
    path = folder / RECORD_NAME
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(to_json(record) + "\n", encoding="utf-8")
    return path


def read_record(path: Path) -> Derived:
    """The record of a derived network.

    Raises:
        ArtifactError: the file is damaged or something else.
    """
    try:
        return from_dict(Derived, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"'{path}' is not the record of a network: {error}; give the network.json that prune or distill wrote"
        ) from error


def rebuilt(record: Derived, path: Path, base: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """The network that the record at ``path`` stands for, in eval mode; ``base`` is its source.

    Raises:
        ArtifactError: the weights file is missing or not the one that the record promises, or a removed block is not there.
        ModelError: the weights do not fit what is left of the source.
        MissingExtraError: channels were removed, and Torch-Pruning is not installed.
    """
    weights = path.parent / WEIGHTS_NAME
    found = sha256_of(weights) if weights.is_file() else "no file"
    if found != record.weights_sha256:
        raise ArtifactError(f"'{weights}' has SHA-256 {found}, its record promises {record.weights_sha256}; make it again")
    module = base
    for removed in record.removed:
        if isinstance(removed, RemovedBlock):
            if removed.block not in dict(module.named_modules()):
                raise ArtifactError(f"'{path}' removes block '{removed.block}', which its source lacks; make it again")
            module = without_block(module, removed.block)
        else:
            module = remove_channels(module, example_inputs, removed)
    load_weights(module, weights)
    return module.eval()
