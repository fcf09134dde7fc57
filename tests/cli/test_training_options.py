"""`edgefold train`, `prune` and `distill`: what is done to the pictures before a network sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from edgefold.models.train_options import TrainOptions
from edgefold.qat_training import QatOptions

Cli = Callable[..., Any]
SMALL = ("--arg", "width=8", "--arg", "blocks=[1]")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of pictures of several sizes."""
    rng = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 160)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for index in range(10):
            side = 8 + index % 3
            Image.fromarray((base + rng.integers(0, 60, (side, side))).astype(np.uint8)).save(folder / f"{index:02}.png")
    return tmp_path / "pictures"


def test_training_as_int8_scales_pictures(cli: Cli, pictures: Path) -> None:
    net = ("hetnet", *SMALL, "--arg", "num_classes=2", "--arg", "resolution=8", "--data", pictures)
    how = ("--qat", "--epochs", "1", "--batch-size", "8")
    refused = cli("train", *net, *how, "-o", "refused")
    assert refused.code == 2
    assert "give an image size" in refused.stderr
    scaled = (*net, *how, "--image-size", "8", "--json")
    weights = []
    for folder, more in (("run", ()), ("again", ()), ("plain", ("--no-flip",)), ("moved", ("--no-flip", "--crop-padding", "2"))):
        trained = cli("train", *scaled, *more, "-o", folder)
        assert trained.code == 0, trained.stderr
        assert trained.data["test_images"] == 4
        tensors = load_file(Path(folder) / "hetnet-qat.safetensors")
        weights.append(torch.cat([value.flatten().float() for _, value in sorted(tensors.items())]))
    run, again, plain, moved = weights
    assert torch.equal(run, again)
    assert not torch.equal(run, plain)
    assert not torch.equal(plain, moved)


def test_pictures_stay_as_they_are_where_asked(cli: Cli, pictures: Path) -> None:
    train = ("train", "hetnet", *SMALL, "--data", pictures, "--image-size", "8", "--epochs", "1", "--batch-size", "8", "--json")
    plain = cli(*train, "-o", "plain", "--no-flip", "--crop-padding", "0")
    assert plain.code == 0, plain.stderr
    assert (plain.data["training"]["flip"], plain.data["training"]["crop_padding"]) == (False, 0)
    usual = cli(*train, "-o", "usual")
    assert (usual.data["training"]["flip"], usual.data["training"]["crop_padding"]) == (True, 2)
    net = ("hetnet", *SMALL, "--arg", "num_classes=2", "--arg", "resolution=8")
    data = ("--data", pictures, "--image-size", "8", "--no-flip", "--crop-padding", "1")
    pruned = cli("prune", *net, *data, "--flops", "0.7", "-o", "half")
    assert pruned.code == 0, pruned.stderr
    distilled = cli("distill", *net, *data, "--teacher", "half/network.json", "--epochs", "1", "-o", "better")
    assert distilled.code == 0, distilled.stderr
    for folder in ("half", "better"):
        (metrics,) = (Path(folder) / "stages").rglob("metrics.json")
        found = json.loads(metrics.read_text())["options"]
        assert (found["flip"], found["crop_padding"]) == (False, 1), folder
    assert cli("train", "hetnet", "--crop-padding", "-1", "-o", "x").code == 2


def test_numbers_out_of_range_are_refused_before_training(cli: Cli, pictures: Path) -> None:
    train = ("train", "hetnet", *SMALL, "--data", pictures, "--image-size", "8", "--epochs", "1", "-o", "run")
    for qat in ((), ("--qat", "--arg", "num_classes=2", "--arg", "resolution=8", "--batch-size", "8")):
        seed = cli(*train, *qat, "--seed", str(10**20 - 1))
        assert (seed.code, "seed is 99999999999999999999, expected" in seed.stderr) == (2, True), seed.stderr
        padding = cli(*train, *qat, "--crop-padding", "100000")
        assert (padding.code, "crop padding is 100000 pixels for images of 8×8" in padding.stderr) == (2, True), padding.stderr


@pytest.mark.parametrize(
    ("option", "name"),
    [(("--learning-rate", "0.5"), "learning_rate"), (("--crop-padding", "1"), "crop_padding"), (("--no-flip",), "flip")],
)
def test_options_of_fine_tuning_need_an_epoch(cli: Cli, option: tuple[str, ...], name: str) -> None:
    ended = cli("prune", "hetnet", "-o", "half", "--flops", "0.5", "--epochs", "0", *option)
    assert ended.code == 2
    assert f"training option {name} is given" in ended.stderr
    assert "nothing is trained with epochs 0" in ended.stderr
    assert not Path("half").exists()


def test_a_device_is_looked_at_before_the_network_is_loaded(cli: Cli) -> None:
    ended = cli("prune", "no-such-network", "-o", "half", "--latency-ms", "3", "--device", "phone")
    assert ended.code == 2
    assert "unknown device 'phone'" in ended.stderr


def test_the_defaults_that_help_names_are_the_defaults(cli: Cli) -> None:
    usual, qat = TrainOptions(), QatOptions()
    shown = " ".join(cli("train", "--help").stdout.split())
    for default in (
        f"({usual.epochs}, and {qat.epochs} with --qat)",
        f"({usual.batch_size}, and {qat.batch_size} with --qat)",
        f"({usual.learning_rate}, and {qat.learning_rate} with --qat)",
        f"({usual.optimizer})",
        f"({usual.weight_decay})",
        f"({usual.crop_padding}; of train --qat {qat.crop_padding})",
    ):
        assert f"[default: {default}" in shown, default
