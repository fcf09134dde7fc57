"""`edgefold prune`, `distill`, `train` on own data, and `ship` with a recipe, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

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


def test_rounds_of_every_kind(cli: Cli, data: Path) -> None:
    """Each round goes part of the way and trains; the last one ends at the target."""
    model = ("hetnet", *("--arg", "width=8"), *("--arg", "blocks=[4]"), *("--arg", "num_classes=3"), *("--arg", "resolution=8"))
    short = cli("prune", *model, "-o", "short", "--blocks", "2", "--rounds", "2", "--data", data, "--json")
    assert short.code == 0, short.stderr
    assert len(short.data["removed"]) == 2
    assert "fine-tuned for 1 epoch in each of 2 rounds" in short.data["history"][0]
    (stage,) = Path("short/stages").iterdir()
    first, second = sorted(stage.glob("round*"))
    assert (first / "metrics.json").exists()
    assert (second / "metrics.json").exists()
    assert (first / "weights.safetensors").stat().st_size > (second / "weights.safetensors").stat().st_size
    sparse = cli("prune", *model, "-o", "sparse", "--sparsity", "0.75", "--rounds", "2", "--data", data, "--json")
    assert sparse.code == 0, sparse.stderr
    assert "in each of 2 rounds" in sparse.data["history"][0]
    assert "(75.0%)" in sparse.data["history"][0]


def test_a_teacher_with_arguments_weights_and_hints(cli: Cli, data: Path) -> None:
    small = {"num_classes": 3, "resolution": 8, "blocks": [1], "p": 2}
    wide = json.dumps({**small, "width": 16})
    trained = cli("train", "hetnet", "-o", "wide", "--data", data, "--kwargs", wide, "--epochs", "1")
    assert trained.code == 0, trained.stderr
    teacher = ("--teacher", "hetnet", "--teacher-arg", wide, "--teacher-weights", "wide/hetnet.safetensors")
    student = ("distill", "hetnet", "--kwargs", json.dumps({**small, "width": 8}), *teacher, "--data", data, "--epochs", "3")
    plain = cli(*student, "-o", "plain")
    assert plain.code == 0, plain.stderr
    hinted = cli(*student, "-o", "hinted", "--hint", "features.0=features.0", "--hint-weight", "2")
    assert hinted.code == 0, hinted.stderr
    weights = [load_file(f"{name}/weights.safetensors") for name in ("plain", "hinted")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    unknown = cli(*student, "-o", "x", "--hint", "features.0=feature.0")
    assert unknown.code == 2
    assert "unknown layer of the teacher 'feature.0'" in " ".join(unknown.stderr.split())
    wrong = cli(*student[:-4], "--teacher-arg", "width=8", "--data", data, "-o", "x")  # the weights are not of that width
    assert wrong.code == 2


def test_a_network_is_not_overwritten_and_told_once(cli: Cli) -> None:
    model = ("hetnet", "--kwargs", '{"width": 16, "blocks": [1], "num_classes": 3, "resolution": 8}', "--epochs", "0")
    first = cli("prune", *model, "-o", "d", "--flops", "0.8")
    assert first.code == 0, first.stderr
    assert first.stdout.count("Pruned to") == 1
    kept = {path.name: path.read_bytes() for path in Path("d").iterdir() if path.is_file()}
    for command in (
        ("prune", *model, "-o", "d", "--flops", "0.5"),
        ("distill", *model[:3], "--teacher", "hetnet", "-o", "d"),
    ):
        again = cli(*command)
        assert (again.code, "'d/network.json' exists already" in again.stderr) == (2, True), again.stderr
    assert {path.name: path.read_bytes() for path in Path("d").iterdir() if path.is_file()} == kept
    forced = cli("prune", *model, "-o", "d", "--flops", "0.5", "--force")
    assert forced.code == 0, forced.stderr
    assert Path("d/weights.safetensors").read_bytes() != kept["weights.safetensors"]


def test_options_that_nothing_uses_are_refused(cli: Cli) -> None:
    for command, message in (
        (("prune", "hetnet", "--sparsity", "0.8", "--device", "adb://1"), "option device is for a target of latency_ms"),
        (("prune", "hetnet", "--flops", "0.8", "--format", "tflite"), "option format is for a target of latency_ms"),
        (("prune", "hetnet", "--sparsity", "0.8", "--round-to", "3"), "option round_to is for removing channels"),
        (("distill", "hetnet", "--teacher", "hetnet", "--hint-weight", "5"), "hint_weight is 5, but there are no hints"),
        (("distill", "hetnet", "--teacher", "hetnet", "--alpha", "2"), "alpha is 2.0, expected a number in [0, 1]"),
        (("prune", "hetnet", "--sparsity", "0.8", "--learning-rate", "-1"), "learning_rate is -1.0, expected a positive number"),
    ):
        ended = cli(*command, "-o", "x")
        assert (ended.code, message in " ".join(ended.stderr.split())) == (2, True), ended.stderr


def test_what_does_not_go_together(cli: Cli, tmp_path: Path) -> None:
    assert "give one of --flops SHARE, --latency-ms MS" in cli("prune", "hetnet", "-o", "x").stderr
    assert "there are several" in cli("prune", "hetnet", "-o", "x", "--blocks", "1", "--sparsity", "0.5").stderr
    assert "at most as many rounds" in cli("prune", "hetnet", "-o", "x", "--blocks", "1", "--rounds", "2").stderr
    assert "hint 'a' names no two layers" in cli("distill", "hetnet", "-o", "x", "--teacher", "hetnet", "--hint", "a").stderr
    assert "model is missing" in cli("ship").stderr
    (tmp_path / "run.toml").write_text('[model]\nname = "hetnet"\n')
    refused = cli("ship", tmp_path / "run.toml", "--format", "onnx")
    assert refused.code == 2
    assert "a recipe says itself" in refused.stderr
    assert "leaves out a stage of a recipe" in cli("ship", "hetnet", "--skip", "prune").stderr
    assert "--remeasure is for the times that a recipe keeps" in cli("ship", "hetnet", "--remeasure").stderr
    assert "did you mean 'fold'" in cli("ship", tmp_path / "run.toml", "--skip", "folds", "-o", tmp_path / "out").stderr
