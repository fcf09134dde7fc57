"""Quantization-aware training of a network.

The network is folded and calibrated as for shipping, then trained on as `edgefold.quantize.qat` describes: with the integers'
rounding in the forward pass, towards the labels and towards the float network's own answers (Hinton et al., 2015, at
temperature 1). What comes out is kept by the names of the canonical graph, so that it is exported through the same path: the same
fold, the same lowering, the same emitters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgefold.errors import DataError, UsageError
from edgefold.trained import TrainedWeights

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram
    from edgefold.models.data import ImageSet, TrainingData
    from edgefold.network import Network
    from edgefold.quantize.calibrate import ScaleTable

CALIBRATED: Final = 256


@dataclass(frozen=True, slots=True)
class QatOptions:
    """How to train. The learning rate falls to zero as half a cosine; what is left below a whole batch is dropped."""

    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-3
    momentum: float = 0.9
    label_weight: float = 0.5  # of the labels in the loss; the rest is the float network's
    seed: int = 0
    crop_padding: int = 0  # pixels that an image may move; only of uint8 images, as is flip
    flip: bool = True

    def __post_init__(self) -> None:
        from edgefold.models.train_options import check_seed

        check_seed(self.seed)
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError(f"epochs is {self.epochs} and batch size {self.batch_size}, expected at least 1 and 2")
        if self.crop_padding < 0:
            raise UsageError(f"crop padding is {self.crop_padding}, expected at least 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0) or not 0 <= self.label_weight <= 1:
            raise UsageError(
                f"learning rate is {self.learning_rate:g} and label weight {self.label_weight:g}, expected above 0, and 0 to 1"
            )


@dataclass(frozen=True, slots=True)
class QatResult:
    """What the training reached: top-1 shares on the test images, in torch, and the mean loss of each epoch."""

    network: str
    float_top1: float
    int8_top1: float  # calibrated only
    qat_top1: float
    test_images: int
    losses: tuple[float, ...]
    data: str
    data_sha256: str
    time_s: float
    findings: tuple[str, ...] = ()  # on the samples that the ranges come from


def train_qat(
    network: Network,
    data: TrainingData,
    options: QatOptions | None = None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[QatResult, TrainedWeights]:
    """Trains a classifier as INT8.

    Args:
        network: takes one batch of images or of other samples; for images its own preprocessing counts, or else the data's mean
            and deviation.
        data: training images, from which calibration takes its samples too, and test images.
        options: how to train.
        progress: told what is going on.

    Raises:
        DataError: the images do not fit the network, or there are fewer than a batch.
        UsageError: the data's samples do not fit the network, or the loss became NaN or infinite.
    """
    from edgefold.batch import as_tensors
    from edgefold.models.augment import check_padding
    from edgefold.models.fit import as_declared, fitted
    from edgefold.pipeline import fold, quantize_model
    from edgefold.quantize.calibrate import attach
    from edgefold.quantize.insert import insert_qdq
    from edgefold.quantize.lint import lint

    options = options or QatOptions()
    start = time.perf_counter()
    declared = as_declared(data, network.preprocessing)
    data = fitted(declared, network.module, as_tensors(network.example_inputs), network.name)
    train, test = data.train, data.test
    if train.pictures:
        check_padding(options.crop_padding, train.images)
    if len(train) < options.batch_size:
        raise DataError(f"there are {len(train)} training images, fewer than a batch of {options.batch_size}; give more of them")
    images = train.normalised(0, options.batch_size)
    progress("folding")
    single = fold(network.module, images[:1])
    batched = fold(network.module, images).program.graph
    progress("calibrating")
    samples = [train.normalised(index, index + 1) for index in range(min(CALIBRATED, len(train)))]
    findings = lint([(sample,) for sample in samples], network.preprocessing)
    program = quantize_model(single, images[:1], calibration=samples, io="int8")  # its scales are for all files
    before = _top1(insert_qdq(attach(batched, program.table), fold_weights=True), test, options.batch_size)
    exact = _top1(batched, test, options.batch_size)
    weights, losses = _train(batched, replace(program.table, biases={}), train, options, progress)
    trained = TrainedWeights(weights, _scales(single, weights, program, samples))
    after = insert_qdq(attach(_with(batched, weights), trained.table), fold_weights=True)
    result = QatResult(
        network=network.name,
        float_top1=exact,
        int8_top1=before,
        qat_top1=_top1(after, test, options.batch_size),
        test_images=len(test),
        losses=tuple(losses),
        data=data.name,
        data_sha256=data.sha256,
        time_s=round(time.perf_counter() - start, 1),
        findings=findings,
    )
    return result, trained


def _train(
    graph: GraphModule, table: ScaleTable, data: ImageSet, options: QatOptions, progress: Callable[[str], None]
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and biases by their names in the graph, and the mean loss of each epoch."""
    import torch
    import torch.nn.functional as F

    from edgefold.models.train_loop import batches, batches_per_epoch
    from edgefold.models.train_options import TrainOptions
    from edgefold.quantize.qat import prepare_qat, trained_weights

    prepared = prepare_qat(graph, table)
    augmentation = TrainOptions(
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        crop_padding=options.crop_padding,
        flip=options.flip,
    )
    optimizer = torch.optim.SGD(prepared.parameters(), lr=options.learning_rate, momentum=options.momentum, nesterov=True)
    steps = options.epochs * batches_per_epoch(len(data), augmentation)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    losses = []
    for epoch in range(options.epochs):
        total, count = 0.0, 0
        for images, labels in batches(data, augmentation, epoch):
            with torch.no_grad():
                target = F.softmax(graph(images)[0], dim=1)
            scores = prepared(images)[0]
            loss = options.label_weight * F.cross_entropy(scores, labels) + (1 - options.label_weight) * F.kl_div(
                F.log_softmax(scores, dim=1), target, reduction="batchmean"
            )
            if not math.isfinite(loss.item()):
                raise UsageError(f"the loss became {loss.item()} in epoch {epoch + 1}; choose a smaller learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        losses.append(total / count)
        progress(f"epoch {epoch + 1} of {options.epochs}: loss {losses[-1]:.4f}")
    return {name: value.clone() for name, value in trained_weights(prepared, graph).items()}, losses


def _scales(folded: FoldResult, weights: Mapping[str, Tensor], program: QuantizedProgram, samples: list[Tensor]) -> ScaleTable:
    """The activations' scales that the training had, with those of the trained weights and of the branches that they make."""
    from edgefold.export.lower.branches import branches_of
    from edgefold.quantize.calibrate import calibrate

    graph = _with(folded.program.graph, weights)
    table = calibrate(
        graph,
        [(sample,) for sample in samples],
        observer=program.table.observer,
        branches=branches_of,
        full_range=program.table.full_range,
    )
    return replace(table, activations=program.table.activations, biases={}, clipped=program.table.clipped)


def _with(graph: GraphModule, weights: Mapping[str, Tensor]) -> GraphModule:
    from edgefold.quantize.qat import load_weights

    return load_weights(graph, weights)


def _top1(graph: GraphModule, data: ImageSet, batch: int) -> float:
    """The share of right answers of a graph that takes exactly ``batch`` images."""
    import torch

    right = 0
    with torch.no_grad():
        for start in range(0, len(data), batch):
            images = data.normalised(start, start + batch)
            count = len(images)
            if count < batch:
                images = torch.cat([images, images[:1].expand(batch - count, *images.shape[1:])])
            right += int((graph(images)[0][:count].argmax(1) == data.labels[start : start + count]).sum())
    return right / len(data)
