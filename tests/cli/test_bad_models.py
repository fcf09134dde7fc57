"""Models, data and outputs that cannot be used: one clear sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgefold
from edgefold.errors import DataError, EdgefoldError, ModelError

Cli = Callable[..., Any]

MODELS = """
import torch
from torch import nn


class Small(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Determinant(Small):
    def forward(self, x):
        return self.head(torch.linalg.det(self.conv(x)))


class Wide(Small):
    input_size = (3, 8, 8)


def small():
    return Small()


def nan():
    net = Small()
    net.conv.weight.data[0, 0, 0, 0] = float("nan")
    return net


def determinant():
    return Determinant()


def wide():
    return Wide()


def number():
    return 3


def broken():
    raise ValueError("out of cheese")


def leaves():
    raise SystemExit(5)


def labelled():
    return torch.zeros(4, 1, 8, 8), [0, 1, 2, 100]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, good and bad data, and an output that stands in the way."""
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "syntax.py").write_text("def small(:\n")
    (tmp_path / "text.txt").write_text("no model")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "good.npy", rng.standard_normal((8, 1, 8, 8)).astype(np.float32))
    np.save(tmp_path / "empty.npy", np.zeros((0, 1, 8, 8), np.float32))
    np.save(tmp_path / "shape.npy", np.zeros((4, 1, 9, 9), np.float32))
    np.save(tmp_path / "nan.npy", np.full((4, 1, 8, 8), np.nan, np.float32))
    np.save(tmp_path / "bytes.npy", np.zeros((4, 1, 8, 8), np.uint8))
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    return tmp_path


SHIP = ("--calibration", "{folder}/good.npy", "-o", "{folder}/out")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        # unknown names
        (("ship", "hetnet-fmnst"), "did you mean 'hetnet"),
        (("ship", "{folder}/models.py:smal", *SHIP), "did you mean 'small'"),
        (("fold", "hetnet", "--arg", "widht=8"), "did you mean 'width'"),
        (("fold", "hetnet", "--arg", "width"), "neither KEY=VALUE nor a JSON object"),
        # missing files, and files that are no models
        (("ship", "{folder}/none.py:small", *SHIP), "none.py"),
        (("fold", "{folder}/none.pt2"), "none.pt2"),
        (("ship", "{folder}/text.txt", *SHIP), "text.txt"),
        (("fold", "{folder}/syntax.py:small"), "SyntaxError"),
        (("fold", "{folder}/models.py:number"), "gave a value of type int, expected a torch.nn.Module"),
        (("export", "{folder}/models.py:small", "-f", "onnx", "--weights", "{folder}/text.txt"), "text.txt"),
        (("fold", "{folder}/models.py:broken"), "models.py:broken' failed: ValueError: out of cheese"),
        (("fold", "{folder}/models.py:leaves"), "models.py:leaves' failed: SystemExit: 5"),
        # weights and inputs
        (("ship", "{folder}/models.py:nan", *SHIP), "NaN"),
        (("export", "{folder}/models.py:wide", "-f", "onnx", "-o", "{folder}/x.onnx"), "x"),
        # calibration
        (("ship", "{folder}/models.py:small", "-o", "{folder}/out"), "--calibration"),
        (("ship", "{folder}/models.py:small", "--calibration", "{folder}/none.npy", "-o", "{folder}/out"), "none.npy"),
        (("ship", "{folder}/models.py:small", "--calibration", "{folder}/empty.npy", "-o", "{folder}/out"), "is empty"),
        (
            ("ship", "{folder}/models.py:small", "--calibration", "{folder}/shape.npy", "-o", "{folder}/out"),
            "expected (N, 1, 8, 8)",
        ),
        (("ship", "{folder}/models.py:small", "--calibration", "{folder}/nan.npy", "-o", "{folder}/out"), "NaN"),
        (("ship", "{folder}/models.py:small", "--calibration", "{folder}/bytes.npy", "-o", "{folder}/out"), "expected float32"),
        (("quantize", "{folder}/models.py:small"), "--calibration"),
        (("ship", "{folder}/models.py:small", *SHIP, "--evaluation", "{folder}/text.txt"), "text.txt"),
        (("ship", "{folder}/models.py:small", *SHIP, "--calibration", "{folder}/models.py:broken"), "broken' failed: ValueError"),
        (("ship", "{folder}/models.py:small", *SHIP, "--evaluation", "{folder}/models.py:labelled"), "class index 100"),
        # outputs
        (("ship", "{folder}/models.py:small", "--calibration", "random", "-o", "{folder}/there"), "exists already"),
        (("ship", "{folder}/models.py:small", "--calibration", "random", "-o", "{folder}/there", "--force"), "is not a bundle"),
        (("ship", "{folder}/models.py:small", "--calibration", "random", "-o", "{folder}/text.txt/out"), "cannot be written"),
        (("export", "{folder}/models.py:small", "-f", "onnx", "-o", "{folder}/there.onnx"), "exists already"),
        (("export", "{folder}/models.py:small", "-f", "onnx", "-o", "{folder}/x.tflite"), "ends in '.tflite'"),
        (("export", "{folder}/models.py:small", "-f", "onnx", "-o", "{folder}/text.txt/x.onnx"), "cannot be written"),
        # ops and options that a format cannot express
        (("export", "{folder}/models.py:determinant", "-f", "tflite", "-o", "{folder}/x.tflite"), "_linalg_det"),
        (
            ("ship", "{folder}/models.py:determinant", "-f", "tflite", "-p", "fp32", "-o", "{folder}/out"),
            "no artifact could be made",
        ),
        (("export", "{folder}/models.py:small", "-f", "tflite", "--io", "int8", "-o", "{folder}/x.tflite"), "int8"),
        (("verify", "{folder}/text.txt", "{folder}/models.py:small"), "text.txt"),
    ],
)
def test_one_sentence_and_nothing_left(cli: Cli, folder: Path, args: tuple[str, ...], words: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ended = cli(*(arg.format(folder=folder) for arg in args))

    assert ended.code == 2, ended.stderr
    assert ended.stdout == ""
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("edgefold: ")
    assert "internal error" not in last
    assert words in last
    assert "Traceback" not in ended.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_a_format_that_fails_does_not_stop_the_others(cli: Cli, folder: Path) -> None:
    out = folder / "out"
    args = ("-f", "onnx", "-f", "tflite", "-p", "fp32", "--device", "fake", "-o", out)
    ended = cli("ship", f"{folder}/models.py:determinant", *args)

    assert ended.code == 1
    assert "FAILED" in ended.stdout
    assert "1 of 2 artifacts" in ended.stdout
    assert "tflite-fp32: emit: op 'aten._linalg_det" in ended.stdout
    with edgefold.load_bundle(out) as bundle:
        assert bundle.names == ("onnx-fp32",)
        assert bundle.run("onnx-fp32", torch.zeros(1, 1, 8, 8).numpy()).outputs[0].shape == (1, 3)
    rows = json.loads((out / "results" / "summary.json").read_text())["rows"]
    assert [row["passed"] for row in rows] == [True, False]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "pairs",
    [
        [(IMAGES[:1], 3)],
        [(IMAGES, torch.tensor([0, 1, 2, 3]))],
        [(IMAGES[:1], torch.tensor(3))],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, torch.arange(4)), batch_size=2),
    ],
)
def test_labels_among_the_calibration_inputs_are_refused_with_the_fix(pairs: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(image, label\) pair.*for image, _ in data"):
        edgefold.ship(Small().eval(), IMAGES[:1], calibration=pairs, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_labels_among_the_example_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgefoldError, match="label"):
        edgefold.ship(Small().eval(), (IMAGES[:1], torch.tensor([3])), calibration=IMAGES, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["ship", "fold", "export_model", "quantize_model"])
def test_train_mode_is_refused_with_the_fix(call: str, tmp_path: Path) -> None:
    module = Small().train()
    calls: dict[str, Callable[[], object]] = {
        "ship": lambda: edgefold.ship(module, IMAGES[:1], calibration=IMAGES, out=tmp_path / "out"),
        "fold": lambda: edgefold.fold(module, IMAGES[:1]),
        "export_model": lambda: edgefold.export_model(module, IMAGES[:1], format="onnx", out=tmp_path / "x"),
        "quantize_model": lambda: edgefold.quantize_model(module, IMAGES[:1], calibration=IMAGES),
    }
    with pytest.raises(ModelError, match=r"eval\(\)"):
        calls[call]()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        ("not a module", IMAGES[:1], "str"),
        (Small().eval(), "picture.png", "str"),
        (Small().eval(), torch.zeros(1, 3, 8, 8), "channels"),
        (Small().eval(), (), "input"),
    ],
)
def test_what_does_not_go_together_is_refused(module: Any, inputs: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(EdgefoldError, match=words) as caught:
        edgefold.export_model(module, inputs, format="onnx", out=tmp_path / "x")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_of_unequal_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 images and 3 labels"):
        edgefold.ship(Small().eval(), IMAGES[:1], calibration=IMAGES, evaluation=(IMAGES, [0, 1, 2]), out=tmp_path / "out")
