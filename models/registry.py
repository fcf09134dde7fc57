"""Built-in models by name: networks with random weights (``hetnet``), trained ones (``hetnet-fmnist``), and a slice of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import nn

from edgefold.errors import UsageError, unknown_name
from edgefold.models.data import FASHION_MNIST_MEAN, FASHION_MNIST_STD, ImageSet, image_set, load_npz
from edgefold.models.networks import NETWORKS, build_network
from edgefold.models.recipe import CHECKPOINTS, checkpoint_names, load_checkpoint, load_recipe

SLICE: Final = CHECKPOINTS / "fmnist-slice.npz"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One line of the list of models. Accuracy (a share), parameters and data are those of a checkpoint."""

    name: str
    summary: str
    trained: bool
    accuracy: float | None = None
    effective_parameters: int | None = None
    data: str | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """A fixed part of a data set: calibration images are training images, evaluation images are test images."""

    calibration: ImageSet
    evaluation: ImageSet


def list_models() -> tuple[ModelInfo, ...]:
    """All built-in models: the trained ones first, each kind by name."""
    trained = []
    for name in checkpoint_names():
        recipe = load_recipe(name)
        summary = f"{NETWORKS[recipe.network].summary}, trained on {recipe.data}"
        trained.append(ModelInfo(name, summary, True, recipe.accuracy, recipe.effective_parameters, recipe.data))
    return (*trained, *(ModelInfo(name, network.summary, False) for name, network in sorted(NETWORKS.items())))


def get_model(name: str, **kwargs: Any) -> nn.Module:
    """The built-in model ``name``, in eval mode.

    Args:
        name: of a network (random weights) or of a checkpoint (trained).
        kwargs: arguments of a network, such as ``width=32``; a checkpoint takes none.

    Raises:
        UsageError: there is no such model, it takes no such argument, or a value is out of range.
        ArtifactError: a checkpoint's files are damaged.
    """
    if name in NETWORKS:
        return build_network(name, **kwargs).eval()
    if name not in checkpoint_names():
        raise unknown_name("model", name, (*NETWORKS, *checkpoint_names()))
    if kwargs:
        recipe = load_recipe(name)
        raise UsageError(
            f"model '{name}' is trained and takes no arguments, but {', '.join(sorted(kwargs))} was given; "
            f"use the network '{recipe.network}' to choose its size"
        )
    module, _ = load_checkpoint(name)
    return module


def builtin_slice() -> Slice:
    """The shipped part of Fashion-MNIST: 1,000 calibration images and 1,000 evaluation images, a tenth of each class."""
    arrays = load_npz(SLICE, ("calibration_images", "calibration_labels", "evaluation_images", "evaluation_labels", "classes"))
    classes = tuple(str(name) for name in np.asarray(arrays["classes"]))
    calibration, evaluation = (
        image_set(
            arrays[f"{part}_images"],
            arrays[f"{part}_labels"],
            f"{SLICE}: {part}",
            classes=classes,
            mean=FASHION_MNIST_MEAN,
            std=FASHION_MNIST_STD,
        )
        for part in ("calibration", "evaluation")
    )
    return Slice(calibration, evaluation)
