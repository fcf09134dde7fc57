"""Small values joined with large ones, and lone integer files: what `export`, `ship` and `verify` say of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.boxes.weight.mul_(400)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return torch.cat([torch.relu(self.boxes(y)), self.scores(y).sigmoid()], 1).flatten(2)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A model and its calibration data, as arguments."""
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(MODEL)
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    return f"{folder}/net.py:Net", "--calibration", f"{folder}/x.npy"


def test_export_and_verify_tell_of_joins(cli: Cli, net: tuple[str, ...]) -> None:
    coarse = cli("export", *net, "-f", "onnx", "-p", "int8", "--io", "int8", "--no-timing", "-o", "coarse.onnx", "--json")
    assert coarse.code == 0, coarse.stderr
    (text,) = coarse.data["findings"]
    assert "'cat' joins 'scores' (its input 1) with larger values: 0." in text
    assert "steps are left of it in the output; return it as an output of its own, or take precision int8 with --io" in text
    verified = cli("verify", "coarse.onnx", *net, "--json")
    assert verified.code == 0, verified.stderr
    assert any("int8: 'cat' joins 'scores' (its input 1) with larger values" in note for note in verified.data["notes"])
    assert verified.data["outputs"][0]["max_steps"] == 0  # the reference joins as the file does
    exported = cli("export", *net, "-f", "onnx", "-p", "int8", "--no-timing", "-o", "fine.onnx")
    assert "Note: 'cat' joins 'scores' (its input 1) in float" in exported.stdout.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_ship_tells_of_joins(cli: Cli, net: tuple[str, ...]) -> None:
    ended = cli("ship", *net, "-f", "onnx", "-p", "int8", "-p", "int8-full", "--no-timing", "--no-explain", "-o", "out", "--json")
    assert ended.code == 0, ended.stderr
    fine, coarse = (note for note in ended.data["notes"] if "'scores'" in note)
    assert fine.startswith("int8: 'cat' joins 'scores' (its input 1) in float")
    assert coarse.startswith("int8-full: 'cat' joins 'scores' (its input 1) with larger values")
    assert json.loads(Path("out/results/summary.json").read_text())["notes"][-2:] == [fine, coarse]
    assert "with larger values" in Path("out/results/report.html").read_text()
    refused = cli("verify", "out", *net, "--exclude", "stem")
    assert refused.code == 2
    assert "records how it was quantized; leave --observer, --equalize and --exclude out" in refused.stderr


def test_a_lone_file_is_compared_with_the_options_that_it_was_made_with(cli: Cli, net: tuple[str, ...], tiny: Path) -> None:
    options = ("--exclude", "stem", "--observer", "minmax", "--equalize")
    made = cli("export", *net, "-f", "onnx", "-p", "int8", *options, "--no-timing", "-o", "net.onnx")
    assert made.code == 0, made.stderr
    found = cli("verify", "net.onnx", *net, *options, "--json").data
    assert found["outputs"][0]["max_steps"] == 0
    assert any("with --observer minmax --equalize --exclude stem" in note for note in found["notes"])
    other = cli("verify", "net.onnx", *net, "--json").data
    assert other["outputs"][0]["max_steps"] is None or other["outputs"][0]["max_steps"] > 0
    refused = cli("verify", tiny / "tiny.onnx", net[0], "--exclude", "stem")
    assert refused.code == 2
    assert "--exclude is for integers" in refused.stderr
