"""Makes the small built-in checkpoints, one after the other; kept so that they can be made again.

``python -m edgefold.models.make_checkpoints FOLDER [NAME …]`` trains in FOLDER, resumes there what was interrupted, and writes
finished checkpoints into the package. All of `SMALL` have one recipe and one budget of epochs, so that their accuracies can be
compared; ``hetnet-fmnist``, the flagship, has more epochs and augmentation (see its record).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import torch

from edgefold.models.data import load_training_data
from edgefold.models.networks import build_network
from edgefold.models.recipe import CHECKPOINTS, checkpoint_names, write_checkpoint
from edgefold.models.train import train
from edgefold.models.train_options import TrainOptions

OPTIONS: Final = TrainOptions(epochs=5, crop_padding=0)
# Checkpoint -> (network, its arguments): what one core trains in two to six minutes.
SMALL: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "dualnet-fmnist": ("dualnet", {"width": 16}),
    "groupnet-fmnist": ("groupnet", {}),
    "hetnet16-fmnist": ("hetnet", {"width": 16, "blocks": [1, 1, 1]}),
    "mobilenet_v1-fmnist": ("mobilenet_v1", {"width": 0.1875}),
    "mobilenet_v3-fmnist": ("mobilenet_v3", {"width": 0.25}),
    "resnet_small-fmnist": ("resnet_small", {"width": 16, "conv": "separable"}),
    "vgg16-fmnist": ("vgg16", {"width": 0.125}),
}


def main(folder: Path, names: list[str]) -> None:
    """Trains the named checkpoints, by default all that the package lacks."""
    data = load_training_data()
    for name in names or [name for name in SMALL if name not in checkpoint_names()]:
        network, kwargs = SMALL[name]
        torch.manual_seed(OPTIONS.seed)
        model = build_network(network, **kwargs)
        result = train(model, data, OPTIONS, out=folder / name, resume=True, on_epoch=lambda row: print(row, flush=True))
        recipe = write_checkpoint(
            CHECKPOINTS, name, model, network, kwargs, data, result, "trained by 'python -m edgefold.models.make_checkpoints'"
        )
        print(f"{name}: {recipe.accuracy:.4f}, {recipe.effective_parameters:,} parameters, {recipe.cpu_time_s:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
