"""Knowledge distillation: a student learns from the labels and from the softened answers of a teacher.

    L = (1 − α)·H(y, P_S) + α·T²·KL(P_T ‖ P_S),   P = softmax(logits / T) in the second term      (Hinton et al., 2015)

T² keeps the gradients of the second term as large as those of the first. Optional hints add β·mean((r(F_S) − F_T)²) for pairs
of layers, where r is a 1×1 convolution to the teacher's channels, trained with the student and thrown away afterwards (FitNets,
Romero et al., ICLR 2015).

Example:
    >>> from edgefold.models.data import load_training_data
    >>> from edgefold.models.distill import DistillOptions, distill
    >>> from edgefold.models.registry import get_model
    >>> from edgefold.models.train import TrainOptions
    >>> student = get_model("hetnet", width=8)
    >>> result = distill(student, get_model("hetnet-fmnist"), load_training_data(), TrainOptions(epochs=8), DistillOptions())
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import ModelError, UsageError, first_line
from edgefold.models.data import TrainingData
from edgefold.models.hints import Hints
from edgefold.models.loaded import in_eval_mode, quiet_errors, refuse_fixed_graph
from edgefold.models.packing import save_weights
from edgefold.models.train import WEIGHTS_NAME, train
from edgefold.models.train_loop import Objective
from edgefold.models.train_options import EpochMetrics, TrainOptions, TrainResult


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """How a student listens to its teacher.

    ``hints`` are pairs of layer names (of the student, of the teacher) whose outputs, (B, C, H, W) or
    (B, C, T), are compared.
    """

    temperature: float = 4.0  # T
    alpha: float = 0.7  # share of the teacher in the loss
    hints: tuple[tuple[str, str], ...] = ()
    hint_weight: float = 1.0  # β


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of the module docstring without hints.

    Args:
        student: logits, (B, classes).
        teacher: logits, (B, classes).
        labels: int64, (B,).
        temperature: T.
        alpha: share of the teacher, in [0, 1].
        label_smoothing: of the first term.
    """
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * hard + alpha * temperature**2 * soft


class _Pupil(nn.Module):
    """The student with its regressors, so that one optimizer and one checkpoint hold both."""

    def __init__(self, network: nn.Module, regressors: nn.ModuleList) -> None:
        super().__init__()
        self.network = network
        self.regressors = regressors

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: TrainingData,
    options: TrainOptions | None = None,
    distillation: DistillOptions | None = None,
    *,
    adapt: Callable[[Tensor], Tensor] | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> TrainResult:
    """Trains ``student`` in place with the help of ``teacher``; see `edgefold.models.train.train` for what is not said here.

    Args:
        student: maps float32 (B, C, H, W) to logits (B, classes).
        teacher: likewise, of any source; it is put into eval mode and does not change.
        data: training and test images.
        options: how to train.
        distillation: how to listen to the teacher.
        adapt: makes the teacher's input of the student's, where they differ (size, channels).
        out: a folder for checkpoint, metrics and the student's weights.
        resume: continue the run in ``out``.
        progress: show a progress bar.
        on_epoch: called with the metrics after each epoch.

    Raises:
        UsageError: impossible options, a hint that names no layer, or whose maps differ in size.
        ModelError: student and teacher give different numbers of classes, or the teacher does not run on a batch of the data.
        UnsupportedError: the student is an exported program.
        OutputError: ``out`` holds a run and ``resume`` is not set.
    """
    options = TrainOptions() if options is None else options
    distillation = DistillOptions() if distillation is None else distillation
    check_options(distillation)
    refuse_fixed_graph(student, type(student).__name__, "distilled")
    in_eval_mode(teacher)
    teach = teacher if adapt is None else nn.Sequential(_Adapter(adapt), teacher)
    example = data.train.normalised(0, 2)
    with Hints(student, teacher, distillation.hints) as hints:
        regressors = hints.regressors(lambda: _both(student, teach, example))
        pupil = _Pupil(student, regressors)
        objective = _objective(pupil, teach, hints, options, distillation)
        result = train(pupil, data, options, out=out, resume=resume, progress=progress, objective=objective, on_epoch=on_epoch)
    if out is not None:
        save_weights(student, out / WEIGHTS_NAME)
    return result


class _Adapter(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of ``x``."""
        return self.function(x)


def check_options(options: DistillOptions) -> None:
    """Raises a `UsageError` for an option out of its range."""
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise UsageError(f"distillation option temperature is {options.temperature}, expected a positive number")
    if not 0 <= options.alpha <= 1:
        raise UsageError(f"distillation option alpha is {options.alpha}, expected a number in [0, 1]")
    if not (math.isfinite(options.hint_weight) and options.hint_weight >= 0):
        raise UsageError(f"distillation option hint_weight is {options.hint_weight}, expected at least 0")


def _both(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """One pass through both, in eval mode, so that hints see their maps; checks that the answers can be compared."""
    was = student.training
    student.eval()
    try:
        with torch.no_grad():
            _lesson(teacher, images[:1])  # of another size: a graph may be fixed to that of its example
            answer, lesson = student(images), _lesson(teacher, images)
    finally:
        student.train(was)
    if answer.shape != lesson.shape:
        raise ModelError(
            f"the student gives logits of shape {tuple(answer.shape)}, the teacher {tuple(lesson.shape)}; "
            "choose a teacher with the same classes"
        )


def _lesson(teacher: nn.Module, images: Tensor) -> Tensor:
    """The teacher's answers to a batch.

    Raises:
        ModelError: it does not run on that many samples, or on samples of that shape, or gives no scores.
    """
    try:
        with quiet_errors():
            lesson = teacher(images)
    except Exception as error:  # of anyone's code
        raise ModelError(
            f"the teacher does not run on samples of shape {tuple(images.shape)} ({first_line(error)}); "
            "choose one that takes the student's samples in batches of any size "
            "(a .pt2 or .onnx file may be fixed to its example's: give its Python source)"
        ) from error
    if not isinstance(lesson, Tensor):
        raise ModelError(f"the teacher gives a {type(lesson).__name__}, expected scores (B, classes); choose a classifier")
    return lesson


def _objective(pupil: _Pupil, teacher: nn.Module, hints: Hints, options: TrainOptions, distillation: DistillOptions) -> Objective:
    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            lesson = teacher(images)
        logits: Tensor = model(images)
        loss = distillation_loss(logits, lesson, labels, distillation.temperature, distillation.alpha, options.label_smoothing)
        if distillation.hints:
            loss = loss + distillation.hint_weight * hints.loss(pupil.regressors)
        return loss, logits

    return objective
