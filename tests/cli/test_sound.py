"""Networks that hear instead of see, through training, pruning, distillation and shipping: float32 data of any shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]

NET = """
import torch
from torch import nn

def unit(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv1d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU(),
        nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())

class Words(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(8, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU(), unit(width, width, 1), unit(width, width, 2))
        self.head = nn.Linear(width, 3)
    def forward(self, sound):
        return self.head(self.layers(sound).mean(2))

def make(width=12):
    return Words(width), torch.randn(1, 8, 20)

class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def spectrogram():
    return Picture(), torch.randn(1, 1, 8, 20)

def two():
    return nn.Bilinear(4, 4, 3), (torch.randn(1, 4), torch.randn(1, 4))
"""


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, Path]:
    """A network in a file, and 96 sounds (8, 20) of three words, each loud in other coefficients."""
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make", sounds(tmp_path / "words.npz")


def sounds(path: Path, kind: type = np.float32, **more: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    values = rng.normal(0, 1, (96, 8, 20))
    for label in range(3):
        values[labels == label, 2 * label : 2 * label + 2] += 2
    if kind is np.uint8:
        values = (values * 20 + 100).clip(0, 255)
    arrays = {
        "train_images": values.astype(kind),
        "train_labels": labels,
        "test_images": values.astype(kind),
        "test_labels": labels,
    }
    np.savez(path, **arrays, **more)  # type: ignore[arg-type]  # numpy types the keyword allow_pickle too
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_every_way_of_training(cli: Cli, words: tuple[str, Path]) -> None:
    net, data = words
    trained = cli("train", net, "-o", "run", "--data", data, "--epochs", "6", "--batch-size", "16", "--json")
    assert trained.code == 0, trained.stderr
    assert trained.data["accuracy"] > 0.8
    assert "test samples of words" in trained.data["history"][0]
    pruned = cli("prune", "run/network.json", "-o", "half", "--flops", "0.6", "--epochs", "1", "--data", data, "--json")
    assert pruned.code == 0, pruned.stderr
    assert [sentence.split()[0] for sentence in pruned.data["history"]] == ["Trained", "Pruned"]
    better = ("half/network.json", "--teacher", "run/network.json", "-o", "better", "--epochs", "1", "--data", data)
    assert cli("distill", *better).code == 0
    as_int8 = cli("train", "better/network.json", "--qat", "-o", "int8", "--data", data, "--epochs", "1", "--batch-size", "16")
    assert as_int8.code == 0, as_int8.stderr
    options = ("--format", "onnx", "--no-timing", "--no-explain")
    own = ("--calibration", data, "--evaluation", data, "--qat", "int8/network-qat.safetensors")
    shipped = cli("ship", "better/network.json", "-o", "out", *own, *options, "--json")
    assert shipped.code == 0, shipped.stdout


def test_bytes_lose_their_channel_axis_and_floats_get_one(cli: Cli, words: tuple[str, Path], tmp_path: Path) -> None:
    net, data = words
    coarse = sounds(tmp_path / "bytes.npz", np.uint8)
    pruned = cli("prune", net, "-o", "half", "--flops", "0.6", "--data", coarse)
    assert pruned.code == 0, pruned.stderr
    pictures = net.replace(":make", ":spectrogram")
    spectra = cli("prune", pictures, "-o", "spectra", "--flops", "0.6", "--data", data)
    assert spectra.code == 0, spectra.stderr
    small = ("--arg", "width=8", "--arg", "blocks=[1]", "--epochs", "1", "--batch-size", "32")
    built_in = cli("train", "hetnet", "-o", "het", "--data", data, *small, "--json")
    assert built_in.code == 0, built_in.stderr
    assert built_in.data["mean"] == []


def test_what_does_not_fit_is_refused_before_training(cli: Cli, words: tuple[str, Path], tmp_path: Path) -> None:
    net, data = words
    longer = np.zeros((6, 8, 30), np.float32)
    np.savez(
        tmp_path / "long.npz",
        train_images=longer,
        train_labels=np.arange(6) % 3,
        test_images=longer,
        test_labels=np.arange(6) % 3,
    )
    many = np.arange(96) % 5
    np.savez(tmp_path / "many.npz", **{**np.load(data), "train_labels": many, "test_labels": many})
    for command in (
        ("prune", net, "--flops", "0.6"),
        ("distill", net, "--teacher", net),
        ("train", net),
        ("train", net, "--qat"),
    ):
        refused = cli(*command, "-o", "x", "--data", tmp_path / "long.npz")
        assert refused.code == 2, command
        assert "have shape (8, 30), but model" in refused.stderr.replace("\n", " ")
        assert "takes (8, 20)" in refused.stderr.replace("\n", " ")
        refused = cli(*command, "-o", "x", "--data", tmp_path / "many.npz")
        assert refused.code == 2
        assert "scores of 3 classes, but the data has 5" in refused.stderr.replace("\n", " ")
    refused = cli("train", net.replace(":make", ":two"), "-o", "x", "--data", data)
    assert refused.code == 2
    assert "takes the inputs float32 (1, 4), float32 (1, 4), expected one" in refused.stderr.replace("\n", " ")
    assert not (tmp_path / "cwd" / "x").exists()
