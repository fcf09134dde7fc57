"""Training learns, repeats itself exactly, and goes on after a stop as if there had been none."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import ModelError, OutputError, UsageError
from edgefold.models.data import TrainingData
from edgefold.models.evaluate import top1
from edgefold.models.packing import load_weights
from edgefold.models.train import CHECKPOINT_NAME, EpochMetrics, TrainOptions, TrainResult, train
from edgefold.models.train_loop import batches, evaluate_average, fast_layout, learning_rate
from edgefold.models.train_state import ExponentialAverage
from edgefold.results import from_dict

Make = Callable[[], nn.Module]
OPTIONS = TrainOptions(epochs=4, batch_size=16, learning_rate=0.05, ema_decay=0.9, crop_padding=1, flip=True)


class StoppedError(Exception):
    """Stands for the kill of a run."""


def stop_after(epoch: int) -> Callable[[EpochMetrics], None]:
    def check(metrics: EpochMetrics) -> None:
        if metrics.epoch == epoch:
            raise StoppedError

    return check


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_it_learns_and_writes_what_it_did(tiny_data: TrainingData, tiny_network: Make, tmp_path: Path) -> None:
    model = tiny_network()
    before = top1(tiny_network().eval(), tiny_data.test)
    result = train(model, tiny_data, OPTIONS, out=tmp_path, progress=False)
    assert result.accuracy >= 0.95 > before
    assert not model.training
    assert top1(model, tiny_data.test) == result.accuracy == result.history[-1].test_accuracy
    assert [row.epoch for row in result.history] == [1, 2, 3, 4]
    assert from_dict(TrainResult, json.loads((tmp_path / "metrics.json").read_text())) == result
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [row.loss for row in result.history]
    again = tiny_network()
    load_weights(again, tmp_path / "weights.safetensors")
    assert top1(again.eval(), tiny_data.test) == result.accuracy


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_gives_the_same_weights(
    optimizer: str, tiny_data: TrainingData, tiny_network: Make, tmp_path: Path
) -> None:
    options = replace(OPTIONS, optimizer=optimizer, learning_rate=0.01)
    whole = tiny_network()
    uninterrupted = train(whole, tiny_data, options, progress=False)
    with pytest.raises(StoppedError):
        train(tiny_network(), tiny_data, options, out=tmp_path, progress=False, on_epoch=stop_after(2))
    stopped = from_dict(TrainResult, json.loads((tmp_path / "metrics.json").read_text()))
    assert [row.loss for row in stopped.history] == [row.loss for row in uninterrupted.history[:2]]
    assert stopped.accuracy == uninterrupted.history[1].test_accuracy
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3  # the names, and two epochs
    resumed = tiny_network()
    torch.manual_seed(99)  # the state of the global generator must not matter
    result = train(resumed, tiny_data, options, out=tmp_path, resume=True, progress=False)
    for name, value in state(whole).items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [row.loss for row in result.history] == [row.loss for row in uninterrupted.history]
    assert from_dict(TrainResult, json.loads((tmp_path / "metrics.json").read_text())) == result
    assert result.accuracy == uninterrupted.accuracy


class Tied(nn.Module):
    """One normalised layer that is used twice under two names, and two linear layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.blocks = nn.ModuleDict({"a/b": nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)), "c": nn.Linear(64, 64)})
        self.again = self.blocks["a/b"]
        self.last = nn.Linear(64, 64)
        self.last.weight = self.blocks["c"].weight  # type: ignore[assignment]  # a module of a ModuleDict has no types
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.blocks["a/b"](x.flatten(1)).relu())
        scores: Tensor = self.head(self.last(self.blocks["c"](y.relu()).relu()).relu())
        return scores


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_tied_modules_and_any_name_train_and_resume(optimizer: str, tiny_data: TrainingData, tmp_path: Path) -> None:
    options = replace(OPTIONS, optimizer=optimizer, learning_rate=0.01)
    whole = Tied()
    result = train(whole, tiny_data, options, progress=False)
    assert result.accuracy == result.history[-1].test_accuracy
    assert not torch.equal(whole.last.weight, Tied().last.weight)
    with pytest.raises(StoppedError):
        train(Tied(), tiny_data, options, out=tmp_path, progress=False, on_epoch=stop_after(2))
    resumed = Tied()
    again = train(resumed, tiny_data, options, out=tmp_path, resume=True, progress=False)
    assert resumed.last.weight is resumed.blocks["c"].weight
    assert again.history[-1].test_accuracy == again.accuracy
    for name, value in state(whole).items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_averaged_weights_are_evaluated_beside_the_modules_own(tiny_data: TrainingData) -> None:
    model = Tied()
    before = state(model)
    average = ExponentialAverage(model, 0.9)
    for value in average.tensors.values():
        value.zero_()
    zeros = evaluate_average(model, average, tiny_data.test)
    assert zeros == top1(model_of_zeros(), tiny_data.test)
    for name, value in state(model).items():
        assert torch.equal(value, before[name]), name


def model_of_zeros() -> nn.Module:
    model = Tied()
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    return model.eval()


def test_the_seed_decides(tiny_data: TrainingData, tiny_network: Make) -> None:
    runs = []
    for seed in (0, 0, 1):
        model = tiny_network()
        train(model, tiny_data, replace(OPTIONS, epochs=1, seed=seed), progress=False)
        runs.append(model.state_dict()["0.weight"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_resuming_refuses_what_does_not_fit(tiny_data: TrainingData, tiny_network: Make, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=1)
    train(tiny_network(), tiny_data, options, out=tmp_path, progress=False)
    with pytest.raises(OutputError, match="exists already"):
        train(tiny_network(), tiny_data, options, out=tmp_path, progress=False)
    with pytest.raises(UsageError, match="seed=0, but now seed=5"):
        train(tiny_network(), tiny_data, replace(options, seed=5), out=tmp_path, resume=True, progress=False)
    with pytest.raises(UsageError, match="other data"):
        train(tiny_network(), replace(tiny_data, sha256="cd" * 32), options, out=tmp_path, resume=True, progress=False)
    otherwise = replace(tiny_data, train=replace(tiny_data.train, mean=(0.5,)))
    with pytest.raises(UsageError, match="prepared in another way"):
        train(tiny_network(), otherwise, options, out=tmp_path, resume=True, progress=False)
    with pytest.raises(ModelError, match="of another network"):
        train(nn.Linear(3, 2), tiny_data, options, out=tmp_path, resume=True, progress=False)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not a training checkpoint"):
        train(tiny_network(), tiny_data, options, out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
    ],
)
def test_impossible_options(change: dict[str, float | str], message: str, tiny_data: TrainingData, tiny_network: Make) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_network(), tiny_data, replace(OPTIONS, **change), progress=False)  # type: ignore[arg-type]  # mixed on purpose


def test_a_diverging_run_ends_with_advice(tiny_data: TrainingData, tiny_network: Make) -> None:
    with pytest.raises(UsageError, match=r"loss became (nan|inf).*learning rate below"):
        train(tiny_network(), tiny_data, replace(OPTIONS, learning_rate=1e30, warmup_epochs=0), progress=False)


def test_narrow_shortcuts_train_without_channels_last(tiny_data: TrainingData) -> None:
    """In channels last, this network corrupts the heap on CPUs without AVX-512 (see `fast_layout`)."""
    narrow = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1, 2), nn.Flatten(), nn.Linear(72, 2))
    assert fast_layout(narrow) == torch.contiguous_format
    assert fast_layout(nn.Conv2d(8, 8, 1, 2)) == fast_layout(nn.Conv2d(4, 8, 1)) == torch.channels_last
    assert train(narrow, tiny_data, OPTIONS, progress=False).accuracy > 0.8


def test_the_schedule_rises_then_falls_to_zero() -> None:
    options = TrainOptions(epochs=10, learning_rate=0.2, warmup_epochs=2)
    rates = [learning_rate(options, position / 4) for position in range(41)]
    assert rates[0] == 0
    assert max(rates) == rates[8] == 0.2
    assert rates[24] == pytest.approx(0.1)  # half-way down
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_average_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = ExponentialAverage(module, 0.5)
    expected = module.weight.item()
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 3.0, 7.0, 9.0, 2.0, 5.0)):
        nn.init.constant_(module.weight, value)
        average.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_every_image_is_seen_once_an_epoch(tiny_data: TrainingData) -> None:
    options = replace(OPTIONS, crop_padding=0, flip=False)
    mean, std = tiny_data.train.mean[0], tiny_data.train.std[0]
    seen = torch.cat([images for images, _ in batches(tiny_data.train, options, 0)])
    pixels = ((seen * std + mean) * 255).round().to(torch.uint8)
    key = [tuple(image.flatten().tolist()) for image in pixels]
    assert sorted(key) == sorted(tuple(image.flatten().tolist()) for image in tiny_data.train.images)
    other = torch.cat([images for images, _ in batches(tiny_data.train, options, 1)])
    assert not torch.equal(seen, other)
