"""Light augmentation of a batch of images: random crops of the padded image, and horizontal flips.

Works on unsigned bytes before normalisation, so that the padding is the black of the pixels. Floats are not augmented:
what moves or mirrors an image without harm may be wrong for sound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edgefold.errors import UsageError


def check_padding(padding: int, images: Tensor) -> None:
    """Refuses to move images (B, C, H, W) by more than their longer side: nothing but black would be left.

    Raises:
        UsageError: see there.
    """
    height, width = images.shape[2:]
    if padding > max(height, width):
        raise UsageError(
            f"crop padding is {padding} pixels for images of {height}×{width}, expected at most {max(height, width)}; "
            "a few pixels are usual"
        )


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Each image moved by up to ``padding`` pixels in both directions, zeros moving in; (B, C, H, W) -> the same.

    Raises:
        UsageError: the padding is larger than the images.
    """
    if padding == 0:
        return images
    check_padding(padding, images)
    count, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    rows = top + torch.arange(height)  # (B, H)
    columns = left + torch.arange(width)  # (B, W)
    index = torch.arange(count).view(-1, 1, 1)
    # Advanced indices around the channel axis move it last: (B, H, W, C).
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2; (B, C, H, W) -> the same."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
