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


def test_what_does_not_go_together(cli: Cli, tmp_path: Path) -> None:
    assert "--flops SHARE or --latency-ms" in cli("prune", "hetnet", "-o", "x").stderr
    assert "one round only" in cli("prune", "hetnet", "-o", "x", "--latency-ms", "3", "--rounds", "2").stderr
    assert "model is missing" in cli("ship").stderr
    (tmp_path / "run.toml").write_text('[model]\nname = "hetnet"\n')
    refused = cli("ship", tmp_path / "run.toml", "--format", "onnx")
    assert refused.code == 2
    assert "a recipe says itself" in refused.stderr
    assert "leaves out a stage of a recipe" in cli("ship", "hetnet", "--skip", "prune").stderr
