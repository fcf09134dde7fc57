"""`edgefold prune`, `distill`, `train` on own data, and `ship` with a recipe, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8), dtype=np.uint8)
    labels = np.arange(32) % 3
    path = tmp_path / "data.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


def test_train_prune_distill(cli: Cli, data: Path) -> None:
    small = ("--arg", "width=16", "--arg", "blocks=[1]", "--arg", "p=2")
    trained = cli("train", "hetnet", "-o", "run", "--data", data, *small, "--epochs", "1", "--json")
    assert trained.code == 0, trained.stderr
    assert trained.data["kwargs"] == {"width": 16, "blocks": [1], "p": 2, "num_classes": 3, "resolution": 8}
    model = ("hetnet", *small, "--arg", "num_classes=3", "--arg", "resolution=8", "--weights", "run/hetnet.safetensors")
    pruned = cli("prune", *model, "-o", "half", "--flops", "0.7", "--data", data, "--json")
    assert pruned.code == 0, pruned.stderr
    assert pruned.data["schema"] == "edgefold.Derived/1"
    assert pruned.data["history"][0].startswith("Pruned to")
    teacher = ("--teacher", "half/network.json", "--epochs", "1", "--data", data)
    distilled = cli("distill", "half/network.json", *teacher, "-o", "better")
    assert distilled.code == 0, distilled.stderr
    assert "better/network.json" in distilled.stdout
    folded = cli("fold", "better/network.json", "--json")
    assert folded.code == 0, folded.stderr


def test_blocks_and_single_weights(cli: Cli, data: Path) -> None:
    model = ("hetnet", *("--arg", "width=8"), *("--arg", "blocks=[3]"), *("--arg", "num_classes=3"), *("--arg", "resolution=8"))
    short = cli("prune", *model, "-o", "short", "--blocks", "1", "--data", data, "--json")
    assert short.code == 0, short.stderr
    (removed,) = short.data["removed"]
    assert removed["block"] in ("features.2", "features.3")
    assert short.data["history"][0].startswith(f"Removed {removed['block']}: ")
    whole, kept = (len(cli("fold", each, "--json").data["layers"]) for each in ("hetnet", "short/network.json"))
    assert kept < whole
    sparse = cli("prune", "short/network.json", "-o", "sparse", "--sparsity", "0.6", "--data", data, "--json")
    assert sparse.code == 0, sparse.stderr
    assert sparse.data["removed"] == [removed]
    assert "458 of 764 (59.9%), which makes no file faster, fine-tuned for 1 epoch" in sparse.data["history"][1]
    assert cli("fold", "sparse/network.json").code == 0


def test_what_does_not_go_together(cli: Cli, tmp_path: Path) -> None:
    assert "give one of --flops SHARE, --latency-ms MS" in cli("prune", "hetnet", "-o", "x").stderr
    assert "there are several" in cli("prune", "hetnet", "-o", "x", "--blocks", "1", "--sparsity", "0.5").stderr
    assert "leave --rounds out" in cli("prune", "hetnet", "-o", "x", "--latency-ms", "3", "--rounds", "2").stderr
    assert "model is missing" in cli("ship").stderr
    (tmp_path / "run.toml").write_text('[model]\nname = "hetnet"\n')
    refused = cli("ship", tmp_path / "run.toml", "--format", "onnx")
    assert refused.code == 2
    assert "a recipe says itself" in refused.stderr
    assert "leaves out a stage of a recipe" in cli("ship", "hetnet", "--skip", "prune").stderr
    assert "--remeasure is for the times that a recipe keeps" in cli("ship", "hetnet", "--remeasure").stderr
    assert "did you mean 'fold'" in cli("ship", tmp_path / "run.toml", "--skip", "folds", "-o", tmp_path / "out").stderr
