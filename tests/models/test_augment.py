"""Augmentation moves and mirrors pixels and changes nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from edgefold.errors import UsageError
from edgefold.models.augment import random_crop, random_flip

IMAGES = torch.arange(1, 41 * 2 * 5 * 6 + 1).view(41, 2, 5, 6)


def test_each_crop_is_one_window_of_the_padded_image() -> None:
    crops = random_crop(IMAGES, 2, Generator().manual_seed(0))
    assert crops.shape == IMAGES.shape
    places = set()
    for image, crop in zip(IMAGES, crops, strict=True):
        windows = F.pad(image, (2, 2, 2, 2)).unfold(1, 5, 1).unfold(2, 6, 1)  # (C, 5, 5, H, W)
        equal = (windows == crop[:, None, None]).flatten(3).all(3).all(0)
        assert int(equal.sum()) == 1
        places.add(tuple(equal.nonzero()[0].tolist()))
    assert len(places) > 10


def test_no_padding_leaves_the_images() -> None:
    assert random_crop(IMAGES, 0, Generator()) is IMAGES


def test_images_are_not_moved_by_more_than_their_size() -> None:
    assert random_crop(IMAGES, 6, Generator()).shape == IMAGES.shape
    with pytest.raises(UsageError, match="padding is 100000 pixels for images of 5×6, expected at most 6"):
        random_crop(IMAGES, 100_000, Generator())


def test_flips_mirror_some_images() -> None:
    flipped = random_flip(IMAGES, Generator().manual_seed(0))
    same = (flipped == IMAGES).flatten(1).all(1)
    mirrored = (flipped == IMAGES.flip(3)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 8 < int(mirrored.sum()) < 33
