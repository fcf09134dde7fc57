"""What is wrong with calibration data: findings that a reader must know, before the numbers that rest on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from edgefold.preprocess import Preprocessing

FEW: Final = 32
_JUDGED: Final = 64  # samples that are looked at closely
_NOISE: Final = 0.05  # correlation of neighbours: below it, pictures would be unlike all others
_SPAN: Final = 0.25  # share of the declared range below which data looks as if it was prepared in another way

Samples = Sequence[tuple[Tensor, ...]]


def lint(samples: Samples, prepare: Preprocessing | None = None) -> tuple[str, ...]:
    """The findings on calibration samples, each one sentence; empty where nothing is wrong.

    NaN, wrong shapes and no data at all are errors, which calibration raises itself.

    Args:
        samples: inputs of the network, images (N, C, H, W) first.
        prepare: the declared preprocessing, for the range that it gives.
    """
    images = [sample[0].float() for sample in samples]
    found = [few(len(samples)), duplicates(samples), constant(images), noise(images)]
    if prepare is not None and images and images[0].ndim == 4:
        found.append(out_of_range(images, prepare))
    return tuple(text for text in found if text)


def few(count: int) -> str:
    """Fewer samples than ranges can be trusted with."""
    return f"only {count} calibration samples, expected {FEW} or more: rare values are missed" if count < FEW else ""


def duplicates(samples: Samples) -> str:
    """Samples that are there more than once."""
    unique = {tuple(tensor.numpy().tobytes() for tensor in sample) for sample in samples}
    twice = len(samples) - len(unique)
    return f"{twice} of {len(samples)} calibration samples are copies of others" if twice else ""


def constant(images: Sequence[Tensor]) -> str:
    """Samples without any content."""
    flat = sum(bool(image.numel() > 1 and image.min() == image.max()) for image in images)
    return f"{flat} of {len(images)} calibration samples have one value everywhere" if flat else ""


def noise(images: Sequence[Tensor]) -> str:
    """Images whose neighbouring pixels have nothing to do with each other: random numbers, not pictures."""
    pairs = [_neighbours(image) for image in images[:: max(1, len(images) // _JUDGED)][:_JUDGED]]
    known = [value for value in pairs if value is not None]
    if not known or abs(sum(known) / len(known)) >= _NOISE:
        return ""
    return "calibration data looks like random numbers (neighbouring pixels do not correlate): INT8 accuracy is then unknown"


def out_of_range(images: Sequence[Tensor], prepare: Preprocessing) -> str:
    """Values that the declared normalisation cannot give, or that fill little of what it gives."""
    low, high = prepare.limits
    seen_low = min(float(image.min()) for image in images)
    seen_high = max(float(image.max()) for image in images)
    told = (
        f"calibration values lie in [{seen_low:.3g}, {seen_high:.3g}], the declared normalisation gives [{low:.3g}, {high:.3g}]"
    )
    span = high - low
    if seen_low < low - 0.01 * span or seen_high > high + 0.01 * span:
        raw = " (raw pixels?)" if seen_low >= 0 and seen_high > 1.5 * max(high, 1.0) else ""
        return f"{told}{raw}: prepare them as declared, or declare what was done"
    if seen_high - seen_low < _SPAN * span and len(images) > 1:
        return f"{told}: they fill little of it, so they may have been prepared in another way"
    return ""


def _neighbours(image: Tensor) -> float | None:
    """The correlation of horizontally neighbouring pixels; ``None`` where there are few pixels or no contrast."""
    if image.ndim != 4 or image.shape[-1] < 4 or image[..., 0].numel() < 16:
        return None
    left, right = image[..., :-1].flatten(), image[..., 1:].flatten()
    value = float(torch.corrcoef(torch.stack([left, right]))[0, 1])
    return None if value != value else value
