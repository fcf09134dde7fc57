"""A data set small enough to train on in a test: two classes of noisy 8×8 images, told apart by which half is bright."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, nn

from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.data import ImageSet, TrainingData


def bright_halves(count: int, seed: int) -> ImageSet:
    generator = Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    images[labels == 0, :, :4] += 100
    images[labels == 1, :, 4:] += 100
    return ImageSet(images.to(torch.uint8), labels, ("top", "bottom"), (0.4,), (0.25,))


@pytest.fixture
def tiny_data() -> TrainingData:
    return TrainingData("bright-halves", bright_halves(96, 0), bright_halves(40, 1), "ab" * 32)


@pytest.fixture
def tiny_network() -> Callable[[], nn.Module]:
    """Makes the same small network each time, with a HetConv, a BatchNorm and dropout in it."""

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            HetConv2d(4, 6, 3, p=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(96, 2),
        )

    return make
