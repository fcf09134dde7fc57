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
_FLAT: Final = 1e-3  # of the range of all data, within which a picture has no content
_NEAR: Final = 0.03  # root mean square difference over contrast, below which a picture is another one with a little noise
_GRID: Final = 8  # pixels a side of the thumbnails in which near copies are looked for
_USUAL: Final = ((0.0, 1.0), (-1.0, 1.0))  # what pixels are often scaled to, whatever was declared
_MARGIN: Final = 0.05  # of a usual range, within which values may end beside its ends

Samples = Sequence[tuple[Tensor, ...]]


def lint(samples: Samples, prepare: Preprocessing | None = None) -> tuple[str, ...]:
    """The findings on calibration samples, each one sentence; empty where nothing is wrong.

    NaN, wrong shapes and no data at all are errors, which calibration raises itself.

    Args:
        samples: inputs of the network, images (N, C, H, W) first.
        prepare: the declared preprocessing, for the range that it gives.
    """
    images = [sample[0].float() for sample in samples]
    found = [few(len(samples)), duplicates(samples), near_copies(images), constant(images), noise(images)]
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


def near_copies(images: Sequence[Tensor]) -> str:
    """Pictures that are an earlier one with a little noise; those that are equal bit by bit are `duplicates`."""
    if not images or images[0].ndim != 4:
        return ""
    single = [picture for image in images for picture in image]
    contrast = torch.stack([picture.std(correction=0) for picture in single])
    thumbs = torch.stack([torch.nn.functional.adaptive_avg_pool2d(picture, _GRID).flatten() for picture in single])
    # A mean over pixels is nearer than the pixels are, so that no near copy is missed here.
    apart = torch.cdist(thumbs, thumbs) / thumbs.shape[1] ** 0.5
    near = apart <= 2 * _NEAR * torch.minimum(contrast[:, None], contrast[None])
    found = sum(
        any(_is_near(single[index], single[other], float(contrast[index])) for other in near[index, :index].nonzero().flatten())
        for index in range(1, len(single))
    )
    return f"{found} of {len(single)} calibration samples are nearly copies of others" if found else ""


def _is_near(picture: Tensor, other: Tensor, contrast: float) -> bool:
    difference = float((picture - other).square().mean().sqrt())
    return 0 < difference < _NEAR * contrast


def constant(images: Sequence[Tensor]) -> str:
    """Samples without any content: every channel of a picture has one value everywhere."""
    if not images:
        return ""
    span = max(float(image.max()) for image in images) - min(float(image.min()) for image in images)
    flat = sum(_is_flat(image, _FLAT * span) for image in images)
    return f"{flat} of {len(images)} calibration samples have one value everywhere" if flat else ""


def _is_flat(image: Tensor, least: float) -> bool:
    if image.ndim != 4 or image.shape[-1] * image.shape[-2] == 1:
        return bool(image.numel() > 1 and image.min() == image.max())
    planes = image.flatten(2)
    return bool((planes.amax(2) - planes.amin(2)).max() <= least)


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
    usual = next((ends for ends in _USUAL if _looks_like(ends, (seen_low, seen_high), (low, high))), None)
    if usual is not None:
        return f"{told}: they look as if they were scaled to [{usual[0]:g}, {usual[1]:g}], so prepare them as declared"
    if seen_high - seen_low < _SPAN * span and len(images) > 1:
        return f"{told}: they fill little of it, so they may have been prepared in another way"
    return ""


def _looks_like(usual: tuple[float, float], seen: tuple[float, float], declared: tuple[float, float]) -> bool:
    """Whether values end where a usual range does, and the declared one ends elsewhere."""
    margin = _MARGIN * (usual[1] - usual[0])
    ends = all(abs(a - b) <= margin for a, b in zip(usual, seen, strict=True))
    # Pixels divided by 255 are never below zero, even where none is white.
    divided = usual[0] == 0 and seen[0] >= -margin and seen[1] <= 1 + margin and declared[0] < -0.3
    return (ends or divided) and max(abs(a - b) for a, b in zip(usual, declared, strict=True)) > 0.2 * (usual[1] - usual[0])


def _neighbours(image: Tensor) -> float | None:
    """The correlation of horizontally neighbouring pixels; ``None`` where there are few pixels or no contrast."""
    if image.ndim != 4 or image.shape[-1] < 4 or image[..., 0].numel() < 16:
        return None
    left, right = image[..., :-1].flatten(), image[..., 1:].flatten()
    value = float(torch.corrcoef(torch.stack([left, right]))[0, 1])
    return None if value != value else value
