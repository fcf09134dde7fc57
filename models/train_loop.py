"""One epoch of training: the schedule, the optimizer, the batches, the loop over them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from edgefold.errors import UsageError
from edgefold.models.augment import random_crop, random_flip
from edgefold.models.data import ImageSet, TrainingData, normalise
from edgefold.models.evaluate import top1
from edgefold.models.train_options import EpochMetrics, TrainOptions
from edgefold.models.train_state import ExponentialAverage, copy_state

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model in train mode, images (B, …), labels (B,)) -> (loss, logits (B, classes))."""

_ONEDNN_BLOCK = 8  # channels
_SEEDS_APART = 1_000_003  # a prime above any number of epochs: no two (seed, epoch) pairs in use share a stream


def fast_layout(model: nn.Module) -> torch.memory_format:
    """The memory format in which the model trains fastest on a CPU without harm.

    Channels last saves a fifth of the time. But oneDNN's AVX2 kernel for the weight gradient of a strided 1×1 convolution writes
    past its buffer in that layout when there are fewer than 8 input channels (uxlfoundation/oneDNN#6035).
    """
    if any(parameter.ndim == 5 for parameter in model.parameters()):  # of a Conv3d, which has no such layout
        return torch.contiguous_format
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and tuple(module.kernel_size) == (1, 1)
            and max(module.stride) > 1
            and module.in_channels // module.groups < _ONEDNN_BLOCK
        ):
            return torch.contiguous_format
    return torch.channels_last


def cross_entropy(label_smoothing: float) -> Objective:
    """Cross-entropy against (1 − ε)·one-hot + ε/classes."""

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    return objective


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The optimizer of the options, with weight decay on weights only (parameters of two dimensions and more)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.learning_rate, foreach=True)
    return SGD(groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.momentum > 0, foreach=True)


def learning_rate(options: TrainOptions, position: float) -> float:
    """The learning rate at ``position`` epochs from the start: a linear rise, then half a cosine down to zero."""
    warmup = min(options.warmup_epochs, options.epochs / 2)
    if position < warmup:
        return options.learning_rate * position / warmup
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (position - warmup) / (options.epochs - warmup)))


def batches(
    data: ImageSet, options: TrainOptions, epoch: int, layout: torch.memory_format = torch.contiguous_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """The (images float32, labels) of one epoch: shuffled, pictures augmented; what is left below a whole batch is dropped."""
    generator = Generator().manual_seed(options.seed * _SEEDS_APART + epoch)
    order = torch.randperm(len(data), generator=generator)
    size = min(options.batch_size, len(data))
    for start in range(0, len(data) - size + 1, size):
        index = order[start : start + size]
        images = data.images[index]
        if data.pictures:
            images = random_crop(images, options.crop_padding, generator)
            if options.flip:
                images = random_flip(images, generator)
        floats = normalise(images, data.mean, data.std)
        # A clone: with one channel, contiguous() would keep strides that convolutions take for channels last.
        yield floats.clone(memory_format=layout if floats.ndim == 4 else torch.contiguous_format), data.labels[index]


def batches_per_epoch(count: int, options: TrainOptions) -> int:
    """How many batches an epoch over ``count`` images has."""
    return count // min(options.batch_size, count)


def run_epoch(
    model: nn.Module,
    data: TrainingData,
    options: TrainOptions,
    epoch: int,
    optimizer: Optimizer,
    average: ExponentialAverage,
    objective: Objective,
    advance: Callable[[int, float], None],
) -> EpochMetrics:
    """Epoch number ``epoch`` (from 0), and its evaluation.

    Raises:
        UsageError: the loss became NaN or infinite.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    steps = batches_per_epoch(len(data.train), options)
    total_loss, correct, seen = 0.0, 0, 0
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed * _SEEDS_APART + epoch)  # for dropout and the like
        for step, (images, labels) in enumerate(batches(data.train, options, epoch, fast_layout(model))):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, epoch + (step + 1) / steps)
            optimizer.zero_grad()
            loss, logits = objective(model, images, labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimizer.step()
            average.update(model, epoch * steps + step)
            value = loss.item()
            if not math.isfinite(value):
                raise UsageError(
                    f"the loss became {value} in epoch {epoch + 1}, step {step + 1}; "
                    f"choose a learning rate below {options.learning_rate}"
                )
            total_loss += value
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            advance(epoch, value)
    accuracy = evaluate_average(model, average, data.test)
    return EpochMetrics(
        epoch=epoch + 1,
        loss=total_loss / steps,
        train_accuracy=correct / seen,
        test_accuracy=accuracy,
        learning_rate=float(optimizer.param_groups[0]["lr"]),
        time_s=time.perf_counter() - start,
        cpu_time_s=time.process_time() - cpu_start,
    )


def evaluate_average(model: nn.Module, average: ExponentialAverage, data: ImageSet) -> float:
    """The top-1 accuracy of the averaged weights; the module's own come back afterwards."""
    model.eval()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    # Copied in, not swapped: `functional_call` does not give a module that stands under two names its own tensors back.
    try:
        copy_state(model, average.tensors)
        return top1(model, data)
    finally:
        copy_state(model, own)


@contextmanager
def progress_bar(wanted: bool, options: TrainOptions, count: int, done: int) -> Iterator[Callable[[int, float], None]]:
    """A bar over all batches of the run, on standard error; silent when that is no terminal. Yields ``advance(epoch, loss)``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    steps = batches_per_epoch(count, options)
    columns = (
        TextColumn("epoch {task.fields[epoch]}/" + str(options.epochs)),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as progress:
        task = progress.add_task("train", total=steps * options.epochs, completed=steps * done, epoch=done + 1, loss=math.nan)

        def advance(epoch: int, loss: float) -> None:
            progress.update(task, advance=1, epoch=epoch + 1, loss=loss)

        yield advance
