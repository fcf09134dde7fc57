"""How a network is trained, and what came out: immutable values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgefold.errors import UsageError, unknown_name

OPTIMIZERS: Final = ("adamw", "sgd")
_SEEDS: Final = 2**32  # times the distance of the epochs' seeds it still is a 64-bit number


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train. The defaults are the recipe of the built-in checkpoints."""

    epochs: int = 24
    batch_size: int = 128
    optimizer: str = "sgd"  # with Nesterov momentum; or "adamw"
    learning_rate: float = 0.1  # the peak
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4  # not of biases and norms
    warmup_epochs: float = 1.0
    ema_decay: float = 0.998
    label_smoothing: float = 0.0
    crop_padding: int = 2  # pixels that an image may move; only of uint8 images, as is flip
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """One epoch: means over the training batches, and the test accuracy of the averaged weights."""

    epoch: int  # from 1
    loss: float
    train_accuracy: float  # of the weights as they were, on augmented images
    test_accuracy: float
    learning_rate: float  # at the end
    time_s: float  # wall time, with the evaluation
    cpu_time_s: float  # of all threads


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run. ``accuracy`` is that of the averaged weights on the test images, in [0, 1]."""

    accuracy: float
    history: tuple[EpochMetrics, ...]
    options: TrainOptions
    data: str
    data_sha256: str
    time_s: float  # wall time over all epochs, also those before a resume
    cpu_time_s: float  # of all threads
    threads: int
    machine: str
    torch_version: str


def check_options(options: TrainOptions) -> None:
    """Raises a `UsageError` for an option out of its range."""
    if options.optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", options.optimizer, OPTIMIZERS)
    for name, least in (("epochs", 1), ("batch_size", 2), ("crop_padding", 0), ("weight_decay", 0), ("warmup_epochs", 0)):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= least):
            raise UsageError(f"training option {name} is {value}, expected at least {least}")
    for name in ("momentum", "ema_decay", "label_smoothing"):
        value = getattr(options, name)
        if not 0 <= value < 1:
            raise UsageError(f"training option {name} is {value}, expected a number in [0, 1)")
    if not (math.isfinite(options.learning_rate) and options.learning_rate > 0):
        raise UsageError(f"training option learning_rate is {options.learning_rate}, expected a positive number")
    check_seed(options.seed)


def check_seed(seed: int) -> None:
    """Raises a `UsageError` for a seed that the generators do not take."""
    if abs(seed) >= _SEEDS:
        raise UsageError(f"seed is {seed}, expected a number between -{_SEEDS:,} and {_SEEDS:,}")
