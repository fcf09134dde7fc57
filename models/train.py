"""Training of small image classifiers on a CPU: seeded, resumable, with a cosine schedule and an average of the weights.

Example:
    >>> import torch
    >>> from pathlib import Path
    >>> from edgefold.models.data import load_training_data
    >>> from edgefold.models.nets.hetnet import hetnet
    >>> from edgefold.models.train import TrainOptions, train
    >>> torch.manual_seed(0)
    >>> model = hetnet(width=32, p=4)
    >>> data = load_training_data()  # Debian's dataset-fashion-mnist
    >>> result = train(model, data, TrainOptions(epochs=24), out=Path("runs/hetnet"), resume=True)
    >>> result.accuracy  # of the averaged weights, which the model now holds, on the test images

The learning rate rises linearly over ``warmup_epochs`` and then falls to zero as half a cosine (Loshchilov and Hutter, ICLR
2017). What is evaluated and kept is the exponential moving average of the weights. Float32 throughout; mixed precision does not
pay on CPUs.

Seeds: the network's initial weights are the caller's (seed torch before making it). All else follows from ``TrainOptions.seed``
and the epoch's number, so that a run that is killed and resumed gives the same weights as one that is not.
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from torch import nn

from edgefold.artifact import atomic_path
from edgefold.errors import OutputError, UsageError
from edgefold.models.augment import check_padding
from edgefold.models.data import TrainingData
from edgefold.models.evaluate import top1
from edgefold.models.fingerprint import WEIGHTS_NAME
from edgefold.models.loaded import refuse_fixed_graph
from edgefold.models.packing import save_weights
from edgefold.models.train_loop import Objective, cross_entropy, fast_layout, make_optimizer, progress_bar, run_epoch
from edgefold.models.train_options import EpochMetrics, TrainOptions, TrainResult, check_options
from edgefold.models.train_state import ExponentialAverage, RunHeader, load_training, save_training
from edgefold.results import to_json

__all__ = ["CHECKPOINT_NAME", "WEIGHTS_NAME", "EpochMetrics", "Objective", "TrainOptions", "TrainResult", "train"]

CHECKPOINT_NAME: Final = "training.safetensors"


def train(
    model: nn.Module,
    data: TrainingData,
    options: TrainOptions | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    objective: Objective | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> TrainResult:
    """Trains ``model`` in place; it ends in eval mode with the averaged weights.

    Args:
        model: maps float32 (B, C, H, W), or what the data holds, to logits (B, classes).
        data: training and test images.
        options: how to train; by default `TrainOptions`.
        out: a folder that gets ``training.safetensors``, ``metrics.json`` and ``metrics.csv`` after each epoch, and at the end
            ``weights.safetensors`` (the averaged weights, packed).
        resume: continue the run whose checkpoint is in ``out``, if there is one.
        progress: show a progress bar (on a terminal only).
        objective: the loss; by default cross-entropy with the label smoothing of the options.
        on_epoch: called with the metrics after each epoch.

    Raises:
        UnsupportedError: the model is an exported program.
        UsageError: impossible options, or a checkpoint of a run with other options; or the loss became NaN or infinite.
        OutputError: ``out`` holds a checkpoint and ``resume`` is not set.
        ModelError: the checkpoint is damaged or of another network.
    """
    options = TrainOptions() if options is None else options
    check_options(options)
    refuse_fixed_graph(model, type(model).__name__, "trained")
    if data.train.pictures:
        check_padding(options.crop_padding, data.train.images)
    if resume and out is None:
        raise UsageError("resume is set, but there is no output folder to resume from; give the folder of the run")
    checkpoint = None if out is None else out / CHECKPOINT_NAME
    model.to(memory_format=fast_layout(model))
    optimizer = make_optimizer(model, options)
    average = ExponentialAverage(model, options.ema_decay)
    header = RunHeader(asdict(options), data.prepared_sha256, ())
    if checkpoint is not None and checkpoint.exists():
        if not resume:
            raise OutputError(f"'{checkpoint}' exists already; resume that run, or choose another folder")
        header = load_training(checkpoint, header, model, average, optimizer)
    history = [EpochMetrics(**row) for row in header.history]  # type: ignore[arg-type]  # numbers of our own JSON
    loss = cross_entropy(options.label_smoothing) if objective is None else objective
    with progress_bar(progress, options, len(data.train), len(history)) as advance:
        for epoch in range(len(history), options.epochs):
            metrics = run_epoch(model, data, options, epoch, optimizer, average, loss, advance)
            history.append(metrics)
            if checkpoint is not None:
                rows = tuple(asdict(row) for row in history)
                save_training(checkpoint, RunHeader(header.options, header.data_sha256, rows), model, average, optimizer)
            if out is not None:
                _write_metrics(out, _result(metrics.test_accuracy, history, options, data))
            if on_epoch is not None:
                on_epoch(metrics)
    model.load_state_dict(average.tensors)
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    result = _result(top1(model, data.test), history, options, data)
    if out is not None:
        save_weights(model, out / WEIGHTS_NAME)
        _write_metrics(out, result)
    return result


def _result(accuracy: float, history: list[EpochMetrics], options: TrainOptions, data: TrainingData) -> TrainResult:
    """What the run is after the epochs of ``history``."""
    return TrainResult(
        accuracy=accuracy,
        history=tuple(history),
        options=options,
        data=data.name,
        data_sha256=data.sha256,
        time_s=sum(row.time_s for row in history),
        cpu_time_s=sum(row.cpu_time_s for row in history),
        threads=torch.get_num_threads(),
        machine=f"{platform.machine()} {platform.system()}",
        torch_version=torch.__version__,
    )


def _write_metrics(out: Path, result: TrainResult) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(asdict(result.history[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.history)
    for name, text in (("metrics.json", to_json(result) + "\n"), ("metrics.csv", table.getvalue())):
        with atomic_path(out / name, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
