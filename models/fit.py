"""Training data in the shape that a network takes, or refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgefold.errors import DataError, UsageError, first_line
from edgefold.models.data import ImageSet, TrainingData
from edgefold.models.loaded import quiet_errors
from edgefold.preprocess import Preprocessing


def fitted(data: TrainingData, module: nn.Module, example_inputs: Sequence[Tensor], name: str) -> TrainingData:
    """The data with samples of the shape of the network's example inputs.

    A channel axis of size 1 comes or goes as the network wants it: grey images are (1, H, W) for a network of images and (H, W)
    for one that has H channels over time.

    Args:
        data: what to train with.
        module: a classifier in eval mode.
        example_inputs: of the network, batch first.
        name: what an error message calls the network.

    Raises:
        UsageError: the network takes several inputs or none of floats, or samples of another shape; or it does not run on a batch
            of samples, or does not give a score for each class; or the data's mean or deviation does not fit its samples.
    """
    if len(example_inputs) != 1 or not example_inputs[0].is_floating_point():
        kinds = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in example_inputs)
        raise UsageError(f"model '{name}' takes the inputs {kinds}, expected one of floats; train it with your own code")
    wanted = tuple(example_inputs[0].shape[1:])
    _check_statistics(data)
    found = replace(data, train=shaped(data.train, wanted), test=shaped(data.test, wanted))
    for part in (found.train, found.test):
        sample = tuple(part.images.shape[1:])
        if sample != wanted:
            raise UsageError(
                f"samples of {data.name} have shape {sample}, but model '{name}' takes {wanted}; "
                "give data of that shape (--image-size scales a folder of images)"
            )
    _check_scores(module, found.train, name)
    return found


def as_declared(data: TrainingData, prepare: Preprocessing | None) -> TrainingData:
    """Pictures normalised, and their channels in the order, as a network declares; other data as it is.

    Args:
        data: pictures are uint8 (B, C, H, W), grey or RGB.
        prepare: from pixels to the input; ``None`` where the network says nothing.

    Raises:
        DataError: the pictures have another number of channels.
    """
    if prepare is None or not data.train.pictures:
        return data
    channels = data.train.images.shape[1]
    if prepare.channels != channels:
        raise DataError(
            f"the images of {data.name} have {channels} channels, the model takes {prepare.channels}; give fitting images"
        )
    scale = prepare.divisor / 255  # a set's mean and deviation are of pixels / 255
    mean, std = (tuple(value * scale for value in values) for values in (prepare.mean, prepare.std))
    train, test = (
        replace(part, images=part.images.flip(1) if prepare.colour == "bgr" else part.images, mean=mean, std=std)
        for part in (data.train, data.test)
    )
    return replace(data, train=train, test=test)


def with_channels(data: TrainingData) -> TrainingData:
    """The data as images (B, C, H, W): floats (B, H, W) get an axis for one channel.

    Raises:
        UsageError: samples of another number of dimensions, or a mean or deviation that does not fit them.
    """
    _check_statistics(data)
    sample = tuple(data.train.images.shape[1:])
    if len(sample) == 3:
        return data
    if len(sample) != 2:
        raise UsageError(
            f"samples of {data.name} have shape {sample}, but built-in networks take images (C, H, W); "
            "train a network of your own, as in model.py:make_model"
        )
    return replace(data, train=shaped(data.train, (1, *sample)), test=shaped(data.test, (1, *sample)))


def shaped(data: ImageSet, wanted: tuple[int, ...]) -> ImageSet:
    """The set with a channel axis of size 1 more or less, if that makes its samples fit."""
    sample = tuple(data.images.shape[1:])
    if sample == (1, *wanted):
        return replace(data, images=data.images.squeeze(1))  # its one mean and deviation are those of all channels now
    if (1, *sample) != wanted:
        return data
    if len(data.mean) > 1:  # they are of an axis that is no longer the channels'
        data = replace(data, images=data.normalised(), mean=(), std=())
    return replace(data, images=data.images.unsqueeze(1))


def _check_statistics(data: TrainingData) -> None:
    """One mean and one deviation for each channel (axis 1), or for all channels, or none."""
    for part in (data.train, data.test):
        channels = part.images.shape[1]
        if len(part.mean) != len(part.std) or len(part.mean) not in (0, 1, channels):
            raise UsageError(
                f"{data.name} has {channels} channels, but {len(part.mean)} means and {len(part.std)} deviations; "
                "give one of each a channel"
            )


def _check_scores(module: nn.Module, data: ImageSet, name: str) -> None:
    """Runs one sample and two samples through the network."""
    batches = (data.normalised(0, 1), data.normalised(0, 2))
    try:
        with torch.no_grad(), quiet_errors():
            for batch in batches:
                scores = module(batch)
    except Exception as error:  # of the user's own code
        raise UsageError(
            f"model '{name}' does not run on samples of shape {tuple(batch.shape)} ({first_line(error)}); "
            "training needs a network that takes batches of any size"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(batch):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"type {type(scores).__name__}"
        raise UsageError(f"model '{name}' gives outputs of {found}, expected scores (B, classes); train it with your own code")
    if scores.shape[1] < len(data.classes):
        raise UsageError(
            f"model '{name}' gives scores of {scores.shape[1]} classes, but the data has {len(data.classes)}; "
            "give it as many, as in --arg num_classes=…"
        )
