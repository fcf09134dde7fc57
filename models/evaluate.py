"""Top-1 accuracy of a network on labelled images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgefold.models.data import ImageSet


def predictions(network: Callable[[Tensor], Tensor], data: ImageSet, batch_size: int = 250) -> Tensor:
    """The class that the network gives each image, int64 (B,). A module should be in eval mode."""
    with torch.inference_mode():
        return torch.cat(
            [network(data.normalised(start, start + batch_size)).argmax(1) for start in range(0, len(data), batch_size)]
        )


def top1(network: Callable[[Tensor], Tensor], data: ImageSet, batch_size: int = 250) -> float:
    """The share of images whose class the network gets right, in [0, 1]. A module should be in eval mode."""
    return float((predictions(network, data, batch_size) == data.labels).double().mean())
