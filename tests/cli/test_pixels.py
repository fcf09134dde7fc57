"""`--io uint8` with a declared preprocessing: a bundle whose file takes the picture itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefold
from edgefold.runtime import execute

Cli = Callable[..., Any]

MODEL = """
import torch
from torch import nn

import edgefold

preprocessing = edgefold.Preprocessing(8, 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
labels = ["a", "b", "c", "d"]


def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    return nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 10)
"""


@pytest.fixture
def bundle(cli: Cli, tmp_path: Path, quick: None) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 10, 3), dtype=np.uint8))
    what = ("-f", "onnx", "-p", "int8", "--io", "uint8", "--layout", "nhwc", "--no-explain", "--observer", "minmax")
    how = ("--lowering", "dense", "--calibration", tmp_path / "x.npy", "-o", tmp_path / "out")
    ended = cli("ship", f"{tmp_path}/net.py:make", *what, *how)
    assert ended.code == 0, ended.stderr
    return tmp_path / "out"


def test_the_file_takes_the_picture_and_the_app_and_the_check_agree(cli: Cli, bundle: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    with edgefold.load_bundle(bundle) as loaded:
        (spec,) = loaded.artifact("onnx-int8").inputs
        assert (spec.dtype, spec.layout, spec.shape) == ("uint8", "nhwc", (1, 8, 10, 3))
        assert spec.pixel_mean == pytest.approx((123.675, 116.28, 103.53))
        prediction = loaded.run("onnx-int8", picture)
        assert prediction.label in "abcd"
        (raw,) = execute(loaded.artifact("onnx-int8").path, [picture[None, None]])
        (end,) = loaded.artifact("onnx-int8").outputs
        assert end.scale is not None
        scores = (raw[0].astype(np.float64) - (end.zero_point or 0)) * end.scale
        np.testing.assert_allclose(prediction.outputs[0], scores, rtol=1e-6)
    ended = cli("verify", bundle, f"{bundle.parent}/net.py:make", "--calibration", bundle.parent / "x.npy", "--json")
    assert ended.code == 0, ended.stderr
    assert ended.data[0]["passed"]
    assert ended.data[0]["outputs"][0]["max_steps"] <= 1


def test_training_as_int8_takes_no_options_of_training_from_scratch(cli: Cli, tmp_path: Path) -> None:
    ended = cli("train", "hetnet-fmnist", "--qat", "--resume", "-o", tmp_path / "run")
    assert ended.code == 2
    assert "--qat is one short run" in ended.stderr
    ended = cli("ship", "hetnet-fmnist", "--qat", tmp_path / "none.safetensors", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "edgefold train --qat" in ended.stderr
