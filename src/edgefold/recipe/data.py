"""The data that a recipe or a command line names, in the place of what comes with a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.batch import as_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.models.data import ImageSet
    from edgefold.network import Network
    from edgefold.preprocess import Preprocessing

RANDOM = "random"
_RANDOM_SAMPLES = 64


def with_data(network: Network, calibration: str | None, evaluation: str | None) -> Network:
    """The network with data of its own choice.

    Args:
        network: what is shipped.
        calibration: see `edgefold.models.inputs.read_calibration`, or ``random``; ``None`` leaves what comes with the network.
        evaluation: see `edgefold.models.inputs.read_evaluation`; likewise.

    Raises:
        InputError: data that cannot be read or does not fit the network.
    """
    from edgefold.batch import samples_like
    from edgefold.models.inputs import read_calibration, read_evaluation
    from edgefold.network import Evaluation

    example = as_tensors(network.example_inputs)
    if calibration == RANDOM:
        samples = random_samples(example, _RANDOM_SAMPLES)
        network = replace(network, calibration=samples, calibration_source="random numbers", random_calibration=True)
    elif calibration is not None:
        inputs = read_calibration(calibration, example, network.preprocessing)
        network = replace(network, calibration=inputs, calibration_source=Path(calibration).name)
    if evaluation is not None:
        found = Evaluation(*read_evaluation(evaluation, network.preprocessing, network.labels, example))
        # Images of another size would fail deep inside the network.
        next(samples_like([found.inputs], example, "evaluation"), None)
        network = replace(network, evaluation=found)
    return network


def random_samples(example: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """``count`` standard normal inputs of the example's shapes, always the same ones; integer inputs are the example's."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor for tensor in example)
        for _ in range(count)
    ]


def as_the_teacher_takes_it(
    data: ImageSet, student: Preprocessing | None, teacher: Preprocessing | None
) -> Callable[[Tensor], Tensor] | None:
    """From the student's input to the teacher's, for the same pixels; ``None`` where the two are the same.

    Args:
        data: pictures normalised for the student.
        student: what the student declares; without it the data's own normalisation and order of channels (RGB) hold.
        teacher: what the teacher declares; without it the teacher takes the student's input.
    """
    import torch

    if teacher is None or not data.pictures:
        return None
    channels = teacher.channels
    if data.images.shape[1] != channels:
        return None  # the teacher refuses them itself, with both shapes
    pixels = (1, -1, 1, 1)
    own_mean, own_std = (data.mean, data.std) if data.mean else ((0.0,), (1 / 255,))  # as `normalise` takes pixels then
    scale = teacher.divisor / 255
    mean, std = torch.tensor(teacher.mean) * scale, torch.tensor(teacher.std) * scale
    turned = (student is not None and student.colour == "bgr") != (teacher.colour == "bgr")
    given_mean, given_std = torch.tensor(own_mean).expand(channels), torch.tensor(own_std).expand(channels)
    if turned:
        given_mean, given_std = given_mean.flip(0), given_std.flip(0)
    if not turned and torch.allclose(given_mean, mean) and torch.allclose(given_std, std):
        return None
    factor = (given_std / std).view(pixels)
    shift = ((given_mean - mean) / std).view(pixels)

    def adapt(images: Tensor) -> Tensor:
        return (images.flip(1) if turned else images) * factor + shift

    return adapt
