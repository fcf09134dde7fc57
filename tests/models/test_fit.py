"""Training data as a network takes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.errors import DataError, UsageError
from edgefold.models.data import ImageSet, TrainingData
from edgefold.models.fit import as_declared, fitted, with_channels
from edgefold.network import Network
from edgefold.preprocess import Preprocessing
from edgefold.recipe.run import training_data


def pictures(channels: int) -> TrainingData:
    pixels = torch.randint(0, 256, (4, channels, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(pixels, torch.arange(4) % 2, ("a", "b"), (0.4,) * channels, (0.25,) * channels)
    return TrainingData("pictures", data, replace(data, images=pixels.flip(3)), "ab" * 32)


@pytest.mark.parametrize(
    "declared",
    [
        Preprocessing(6, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        Preprocessing(6, 8, (127.5, 120.0, 110.0), (128.0, 60.0, 70.0), divisor=1.0),
        Preprocessing(6, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bgr", divisor=127.5),
        Preprocessing(6, 8, (3.0,), (2.0,), "gray", divisor=16.0),
    ],
)
def test_pictures_become_what_the_network_declares(declared: Preprocessing) -> None:
    data = pictures(declared.channels)
    found = as_declared(data, declared)
    for part, before in ((found.train, data.train), (found.test, data.test)):
        expected = np.concatenate([declared(image) for image in before.images.numpy().transpose(0, 2, 3, 1)])
        np.testing.assert_allclose(part.normalised().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found.sha256 == data.sha256


def test_recipes_and_training_take_a_divisor_of_their_own() -> None:
    declared = Preprocessing(6, 8, (3.0,), (2.0,), "gray", divisor=16.0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    network = Network("net", module, torch.zeros(1, 1, 6, 8), preprocessing=declared)
    data = pictures(1)
    found = training_data(network, data, "net").train.normalised().numpy()
    expected = np.concatenate([declared(image[0]) for image in data.train.images.numpy()])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [((0.4, 0.4), (0.2, 0.2)), ((0.4,) * 3, (0.2,))])
def test_another_number_of_means_than_channels_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    data = pictures(3)
    wrong = replace(data, train=replace(data.train, mean=mean, std=std))
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    words = f"has 3 channels, but {len(mean)} means and {len(std)} deviations"
    with pytest.raises(UsageError, match=words):
        fitted(wrong, module, [torch.zeros(1, 3, 6, 8)], "net")
    with pytest.raises(UsageError, match=words):
        with_channels(wrong)


def test_what_is_no_picture_stays_and_other_channels_are_refused() -> None:
    declared = Preprocessing(6, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    sound = ImageSet(torch.randn(4, 1, 6, 8), torch.arange(4) % 2, ("a", "b"), (), ())
    data = TrainingData("sound", sound, sound, "ab" * 32)
    assert as_declared(data, declared) is data
    assert as_declared(data, None) is data
    with pytest.raises(DataError, match="the images of pictures have 1 channels, the model takes 3"):
        as_declared(pictures(1), declared)
