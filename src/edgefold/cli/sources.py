"""From what stands on the command line (a model's name, paths of data) to a network with its data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefold.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.models.data import ImageSet
    from edgefold.network import Evaluation, Network

RANDOM = "random"
CALIBRATION_SAMPLES = 1000
_RANDOM_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, as the command line says it."""

    name: str
    arg: list[str] | None = None
    weights: Path | None = None
    trust: bool = False

    @property
    def short_name(self) -> str:
        """The name that outputs get: without folders, suffixes and the characters that file names cannot have."""
        from edgefold.report.table import slug

        last = self.name.rpartition(":")[2]
        return slug(Path(last).stem if "." in last or "/" in last else last)

    def load(self, calibration: str | None = None, evaluation: Path | None = None) -> Network:
        """The network, with data given on the command line in the place of the data that comes with it.

        Raises:
            InputError: there is no such model, or data that cannot be read or does not fit it.
        """
        from edgefold.shipping import named_network

        network = named_network(self.name, kwargs=arguments(self.arg or []), weights=self.weights, trust=self.trust)
        if calibration == RANDOM:
            samples = _random_samples(network)
            network = replace(network, calibration=samples, calibration_source="random numbers", random_calibration=True)
        elif calibration is not None:
            inputs = _calibration_samples(Path(calibration), network)
            network = replace(network, calibration=inputs, calibration_source=Path(calibration).name)
        if evaluation is not None:
            network = replace(network, evaluation=_evaluation(evaluation, network))
        return network


def arguments(pairs: list[str]) -> dict[str, Any]:
    """``["width=32", "conv=dual"]`` -> ``{"width": 32, "conv": "dual"}``: values are JSON, or else words.

    Raises:
        UsageError: a pair without ``=`` or with an empty key.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"argument '{pair}' has no value; write KEY=VALUE, e.g. width=32")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _random_samples(network: Network) -> list[tuple[Tensor, ...]]:
    """Standard normal inputs of the example's shapes, always the same ones; integer inputs are the example's."""
    import torch

    from edgefold.batch import as_tensors

    generator = torch.Generator().manual_seed(0)
    example = as_tensors(network.example_inputs)
    return [
        tuple(torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor for tensor in example)
        for _ in range(_RANDOM_SAMPLES)
    ]


def _calibration_samples(path: Path, network: Network) -> Tensor:
    """Inputs (N, C, H, W) in ``path``: an .npy array of prepared inputs, or the training images of a data set."""
    import numpy as np
    import torch

    from edgefold.models.data import load_training_data

    if path.suffix != ".npy":
        return _inputs(load_training_data(path).train, network)[:CALIBRATION_SAMPLES]
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}; give the path of an .npy file") from error
    except ValueError as error:
        raise DataError(f"'{path}' is not an .npy file of numbers: {error}; write it with numpy.save") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"'{path}' holds {array.dtype}, expected float32 inputs as the model takes them; preprocess them first")
    return torch.from_numpy(array.astype(np.float32))


def _evaluation(path: Path, network: Network) -> Evaluation:
    from edgefold.models.data import load_training_data
    from edgefold.network import Evaluation

    data = load_training_data(path)
    return Evaluation((_inputs(data.test, network),), data.test.labels.numpy(), f"{len(data.test):,} test images of {data.name}")


def _inputs(images: ImageSet, network: Network) -> Tensor:
    """Images as the network takes them: prepared with its own mean and deviation where it has some."""
    from edgefold.models.data import normalise

    prepare = network.preprocessing
    mean, std = (images.mean, images.std) if prepare is None else (prepare.mean, prepare.std)
    if len(mean) != images.images.shape[1]:
        raise DataError(f"the images have {images.images.shape[1]} channels, the model takes {len(mean)}; give fitting images")
    return normalise(images.images, mean, std)
