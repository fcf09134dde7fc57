"""Calibration, verification and the app use one preprocessing, and what is wrong with the data is told wherever it calibrates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]

MODEL = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers).eval(), torch.zeros(1, 3, 12, 12)
"""
DECLARED = ("--preprocess", "mean=0.4", "--preprocess", "std=0.2", "--preprocess", "resize=stretch")


def _pictures(folder: Path, count: int, seed: int) -> None:
    """Smooth random colours, in folders of four classes."""
    numbers = np.random.default_rng(seed)
    for index in range(count):
        target = folder / f"class{index % 4}"
        target.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(target / f"{index}.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(MODEL)
    _pictures(folder / "seen", 36, 0)
    _pictures(folder / "unseen", 8, 1)
    return folder


@pytest.fixture
def bundle(cli: Cli, work: Path, tmp_path: Path, quick: None) -> Path:
    """A copy of the bundle, which the first test that asks for it ships."""
    if not (work / "out").exists():
        _ship(cli, work)
    return Path(copytree(work / "out", tmp_path / "out"))


def _ship(cli: Cli, work: Path) -> None:
    data = ("--calibration", work / "seen", "--evaluation", work / "unseen", *DECLARED)
    ended = cli("ship", f"{work}/net.py:make", *data, "-f", "onnx", "-p", "int8", "--no-explain", "-o", work / "out")
    assert ended.code in (0, 1), ended.stderr


def test_pictures_are_prepared_as_the_bundle_declares(cli: Cli, work: Path, bundle: Path) -> None:
    what = ("verify", bundle, f"{work}/net.py:make", "--calibration", work / "seen", "--evaluation", work / "unseen")
    (report,) = cli(*what, "--json").data
    assert report["passed"]
    assert report["outputs"][0]["max_steps"] == 0  # of one and the same integer network
    assert report["notes"] == []
    other = cli(*what, "--preprocess", "mean=0.5")
    assert other.code == 2
    assert "mean=0.5 is not what the bundle declares (mean 0.4, std 0.2, rgb, resize stretch)" in other.stderr
    unlike = cli("verify", bundle, f"{work}/net.py:make", "--calibration", work / "unseen", *DECLARED)
    words = " ".join(unlike.stdout.split())
    assert "The calibration data is not that of the bundle: found 8 samples of unseen" in words
    assert "expected 36 samples of seen" in words


def test_a_damaged_bundle_is_refused(cli: Cli, work: Path, bundle: Path) -> None:
    what = ("verify", bundle, f"{work}/net.py:make", "--calibration", work / "seen")
    manifest = json.loads((bundle / "manifest.json").read_text())
    file = bundle / manifest["artifacts"][0]["file"]
    sound, content = file.read_bytes(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    changed = cli(*what)
    assert (changed.code, "has other content than its manifest promises" in changed.stderr) == (2, True)
    file.write_bytes(sound)
    manifest["calibration"]["sha256"] = "0"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    no_hash = cli(*what)
    assert (no_hash.code, "at calibration.sha256" in no_hash.stderr) == (2, True)


@pytest.mark.parametrize("format", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tflite", "executorch"))])
def test_export_marks_a_file_of_random_data(cli: Cli, work: Path, tmp_path: Path, format: str) -> None:
    what = ("export", f"{work}/net.py:make", "-f", format, "-p", "int8", "--no-timing", "--calibration")
    random = cli(*what, "random", "-o", tmp_path / "random", "--json")
    assert random.code == 0, random.stderr
    assert random.data["calibration"]["random"]
    assert random.data["calibration"]["samples"] == 64
    assert cli("inspect", random.data["path"], "--json").data["random_calibration"]
    assert "calibrated with random data" in cli("inspect", random.data["path"]).stdout

    real = cli(*what, work / "seen", *DECLARED, "-o", tmp_path / "real", "--json")
    assert not real.data["calibration"]["random"]
    assert not cli("inspect", real.data["path"], "--json").data["random_calibration"]


def test_export_tells_what_is_wrong_with_the_data(cli: Cli, work: Path, tmp_path: Path) -> None:
    what = (
        "export",
        f"{work}/net.py:make",
        "-f",
        "onnx",
        "-p",
        "int8",
        "--no-timing",
        "--calibration",
        work / "unseen",
        *DECLARED,
    )
    finding = "only 8 calibration samples, expected 32 or more: rare values are missed"
    assert f"Note: {finding}" in cli(*what, "-o", tmp_path / "one").stdout
    assert cli(*what, "-o", tmp_path / "two", "--json").data["calibration"]["findings"] == [finding]


def test_quantize_tells_random_data(cli: Cli, work: Path) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", "random")
    assert "Note: calibrated with random data" in ended.stdout


def test_data_of_a_model_that_is_prepared_otherwise_is_left_out(cli: Cli, tmp_path: Path) -> None:
    what = ("export", "hetnet16-fmnist", "-f", "onnx", "-p", "int8", "-o", tmp_path / "net")
    ended = cli(*what, "--preprocess", "mean=0.5", "--preprocess", "std=0.5")
    assert ended.code == 2
    assert "brings none; give --calibration PATH" in ended.stderr


def test_a_file_alone_is_compared_with_default_options(cli: Cli, work: Path, bundle: Path) -> None:
    (path,) = (bundle / "artifacts").glob("*.onnx")
    data = ("--calibration", work / "seen", "--evaluation", work / "unseen", *DECLARED)
    report = cli("verify", path, f"{work}/net.py:make", *data, "--json").data
    assert any("default options" in note for note in report["notes"])
