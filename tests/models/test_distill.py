"""Distillation: the loss against its formula, hints, and a student that follows its teacher."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import ModelError, UsageError
from edgefold.models.data import TrainingData
from edgefold.models.distill import DistillOptions, distill, distillation_loss
from edgefold.models.hints import Hints
from edgefold.models.loaded import quiet_errors
from edgefold.models.packing import load_weights
from edgefold.models.train import WEIGHTS_NAME, TrainOptions, train

Make = Callable[[], nn.Module]
OPTIONS = TrainOptions(epochs=3, batch_size=16, learning_rate=0.05, ema_decay=0.9, crop_padding=1)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (1.0, 1.0), (4.0, 0.7)])
def test_the_loss_is_the_formula(temperature: float, alpha: float) -> None:
    student, teacher = logits(0, 6, 5), logits(1, 6, 5)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    hard = -sum(float(torch.log(torch.softmax(student[i], 0)[labels[i]])) for i in range(6)) / 6
    p_t, p_s = torch.softmax(teacher / temperature, 1), torch.softmax(student / temperature, 1)
    kl = float((p_t * (p_t.log() - p_s.log())).sum()) / 6
    expected = (1 - alpha) * hard + alpha * temperature**2 * kl
    assert distillation_loss(student, teacher, labels, temperature, alpha).item() == pytest.approx(expected, rel=1e-12)


def test_equal_logits_leave_the_labels_only() -> None:
    student = logits(0, 4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    loss = distillation_loss(student, student, labels, 3.0, 0.5, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.5 * F.cross_entropy(student, labels, label_smoothing=0.1).item(), rel=1e-12)


def test_the_soft_gradient_does_not_shrink_with_temperature() -> None:
    """For large T the gradient tends to (z_S − z_T)/classes, centred: T² undoes both factors 1/T."""
    student, teacher = logits(0, 2, 4).requires_grad_(), logits(1, 2, 4)
    distillation_loss(student, teacher, torch.zeros(2, dtype=torch.int64), 1000.0, 1.0).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    difference = student.detach() - teacher
    expected = (difference - difference.mean(1, keepdim=True)) / 4 / 2
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


def test_a_student_follows_its_teacher_alone(tiny_data: TrainingData, tiny_network: Make) -> None:
    """With alpha = 1 and labels that say nothing, all that a student knows it has from the teacher."""
    teacher = tiny_network()
    assert train(teacher, tiny_data, replace(OPTIONS, epochs=6), progress=False).accuracy >= 0.95
    blind = replace(tiny_data, train=replace(tiny_data.train, labels=torch.zeros_like(tiny_data.train.labels)))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    taught, untaught = tiny_network(), tiny_network()
    distill(taught, teacher, blind, replace(OPTIONS, epochs=6), DistillOptions(2.0, 1.0), progress=False)
    train(untaught, blind, replace(OPTIONS, epochs=6), progress=False)
    images = tiny_data.test.normalised()
    follows = (taught(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert follows >= 0.95
    assert (untaught(images).argmax(1) == 0).all()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_hints_train_and_are_thrown_away(tiny_data: TrainingData, tiny_network: Make, tmp_path: Path) -> None:
    teacher, student = tiny_network(), tiny_network()
    names = set(student.state_dict())
    pairs = (("0", "0"), ("3", "3"))
    seen: list[float] = []
    result = distill(
        student,
        teacher,
        tiny_data,
        OPTIONS,
        DistillOptions(alpha=0.5, hints=pairs, hint_weight=0.1),
        out=tmp_path,
        progress=False,
        on_epoch=lambda metrics: seen.append(metrics.loss),
    )
    assert seen[-1] < seen[0]
    assert set(student.state_dict()) == names
    assert not student[0]._forward_hooks  # type: ignore[index]  # a Sequential
    assert not teacher[0]._forward_hooks  # type: ignore[index]  # likewise
    again = tiny_network()
    load_weights(again, tmp_path / WEIGHTS_NAME)
    images = tiny_data.test.normalised()
    share = (again.eval()(images).argmax(1) == tiny_data.test.labels).double().mean().item()
    assert share == result.accuracy


def test_hint_loss_is_the_mean_square() -> None:
    student, teacher = nn.Sequential(nn.Conv2d(1, 2, 1)), nn.Sequential(nn.Conv2d(1, 3, 1))
    x = torch.randn(2, 1, 4, 4)

    def run() -> None:
        student(x)
        teacher(x)

    with Hints(student, teacher, [("0", "0")]) as hints:
        regressors = hints.regressors(run)
        (regressor,) = regressors
        expected = F.mse_loss(regressor(student(x)), teacher(x))
        torch.testing.assert_close(hints.loss(regressors), expected)


def test_hints_of_layers_that_never_run() -> None:
    """An exported program keeps the names of the layers and calls none of them."""
    network, images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 1, 5, 5)
    exported = torch.export.export(network, (images,)).module()

    def run() -> None:
        network(images)
        exported(images)

    message = "layer '0' of the teacher is never called .* give the network's Python source"
    with Hints(network, exported, [("0", "0")]) as hints, pytest.raises(UsageError, match=message):
        hints.regressors(run)


def test_hints_over_time() -> None:
    student, teacher = nn.Sequential(nn.Conv1d(4, 2, 1)), nn.Sequential(nn.Conv1d(4, 3, 1))
    x = torch.randn(2, 4, 9)

    def run() -> None:
        student(x)
        teacher(x)

    with Hints(student, teacher, [("0", "0")]) as hints:
        (regressor,) = regressors = hints.regressors(run)
        torch.testing.assert_close(hints.loss(regressors), F.mse_loss(regressor(student(x)), teacher(x)))


def test_a_teacher_of_another_input(tiny_data: TrainingData, tiny_network: Make) -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    options = replace(OPTIONS, epochs=1)
    distill(
        tiny_network(),
        teacher,
        tiny_data,
        options,
        adapt=lambda x: F.interpolate(x.expand(-1, 3, -1, -1), 16),
        progress=False,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DistillOptions(temperature=0), "temperature is 0"),
        (DistillOptions(alpha=1.5), "alpha is 1.5"),
        (DistillOptions(hint_weight=-1), "hint_weight is -1"),
        (DistillOptions(hints=(("nine", "0"),)), "unknown layer of the student 'nine'"),
        (DistillOptions(hints=(("0", "7"),)), r"compares maps of shape \(4, 4, 4\) and \(2,\)"),
    ],
)
def test_impossible_options(options: DistillOptions, message: str, tiny_data: TrainingData, tiny_network: Make) -> None:
    with pytest.raises(UsageError, match=message):
        distill(tiny_network(), tiny_network(), tiny_data, OPTIONS, options, progress=False)


def test_other_classes_are_refused(tiny_data: TrainingData, tiny_network: Make) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match=r"logits of shape \(2, 2\), the teacher \(2, 3\)"):
        distill(tiny_network(), teacher, tiny_data, OPTIONS, progress=False)


def test_a_teacher_that_fails_leaves_the_student_in_its_mode(tiny_data: TrainingData, tiny_network: Make) -> None:
    student = tiny_network().train()
    with pytest.raises(ModelError, match="the teacher does not run on samples"):
        distill(student, nn.Linear(3, 2), tiny_data, OPTIONS, progress=False)
    assert student.training
    assert all(part.training for part in student.modules())


def test_what_a_teacher_says_is_heard_unless_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_errors():
        print("a warning of the network", file=sys.stderr)
    assert capsys.readouterr().err == "a warning of the network\n"

    def fails() -> None:
        print("a traceback", file=sys.stderr)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), quiet_errors():
        fails()
    assert capsys.readouterr().err == ""
