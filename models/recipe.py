"""Built-in checkpoints: the record of how one was made, its writer, its loader."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from torch import nn

from edgefold.artifact import atomic_path, sha256_of
from edgefold.errors import ArtifactError, unknown_name
from edgefold.models.data import TrainingData
from edgefold.models.evaluate import top1
from edgefold.models.networks import build_network
from edgefold.models.packing import effective_parameters, load_weights, save_weights
from edgefold.models.train_options import TrainResult
from edgefold.results import from_dict, to_json

CHECKPOINTS: Final = Path(str(importlib.resources.files("edgefold.models.checkpoints")))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint was made and what it reached.

    ``accuracy`` is the top-1 share on all ``test_images`` of the data set, of the shipped file, loaded back. ``training`` holds
    every option of the run; ``time_s`` is wall time on ``machine``, whose cores may have been shared, and ``cpu_time_s`` the
    time of all threads.
    """

    name: str
    network: str  # of `edgefold.models.networks`
    kwargs: dict[str, Any]
    accuracy: float
    test_images: int
    effective_parameters: int
    data: str
    data_sha256: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, Any]
    time_s: float
    cpu_time_s: float
    threads: int
    machine: str
    date: str
    versions: dict[str, str]
    weights_sha256: str
    notes: str = ""


def checkpoint_names(folder: Path = CHECKPOINTS) -> tuple[str, ...]:
    """The names of the checkpoints in a folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def load_recipe(name: str, folder: Path = CHECKPOINTS) -> Recipe:
    """The recipe of a checkpoint.

    Raises:
        UsageError: there is no such checkpoint.
        ArtifactError: its record is damaged.
    """
    path = folder / f"{name}.json"
    if name not in checkpoint_names(folder):
        raise unknown_name("checkpoint", name, checkpoint_names(folder))
    try:
        return from_dict(Recipe, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ArtifactError(f"'{path}' is not JSON: {error}; install Edgefold anew") from error


def load_checkpoint(name: str, folder: Path = CHECKPOINTS) -> tuple[nn.Module, Recipe]:
    """The trained network ``name``, in eval mode, and its recipe.

    Raises:
        UsageError: there is no such checkpoint.
        ArtifactError: the weights file is missing or not the one that the recipe promises.
    """
    recipe = load_recipe(name, folder)
    path = folder / f"{name}.safetensors"
    found = sha256_of(path) if path.exists() else "no file"
    if found != recipe.weights_sha256:
        raise ArtifactError(
            f"'{path}' has SHA-256 {found}, but its recipe promises {recipe.weights_sha256}; install Edgefold anew"
        )
    module = build_network(recipe.network, **recipe.kwargs)
    load_weights(module, path)
    return module.eval(), recipe


def write_checkpoint(
    folder: Path,
    name: str,
    module: nn.Module,
    network: str,
    kwargs: dict[str, Any],
    data: TrainingData,
    result: TrainResult,
    notes: str = "",
) -> Recipe:
    """Writes a trained network as checkpoint ``name``, loads it back, measures it on all test images, and writes its recipe.

    Raises:
        ModelError: the weights do not fit the network that ``network`` and ``kwargs`` name.
    """
    path = folder / f"{name}.safetensors"
    save_weights(module, path)
    loaded = build_network(network, **kwargs)
    load_weights(loaded, path)
    recipe = Recipe(
        name=name,
        network=network,
        kwargs=kwargs,
        accuracy=top1(loaded.eval(), data.test),
        test_images=len(data.test),
        effective_parameters=effective_parameters(loaded),
        data=data.name,
        data_sha256=data.sha256,
        classes=data.test.classes,
        mean=data.test.mean,
        std=data.test.std,
        training=asdict(result.options),
        time_s=round(result.time_s, 1),
        cpu_time_s=round(result.cpu_time_s, 1),
        threads=result.threads,
        machine=result.machine,
        date=datetime.now(UTC).date().isoformat(),
        versions={package: importlib.metadata.version(package) for package in ("edgefold", "torch", "safetensors")},
        weights_sha256=sha256_of(path),
        notes=notes,
    )
    with atomic_path(folder / f"{name}.json", force=True) as temporary:
        temporary.write_text(to_json(recipe) + "\n", encoding="utf-8")
    return recipe
