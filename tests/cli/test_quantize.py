"""`edgefold quantize`: the layers that lose accuracy, and whether INT8 pays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgefold.cli.quantize import RoundedScheme
from edgefold.schemes import SCHEMES

Cli = Callable[..., Any]

# Six convs in a row. In the bad ones a weight of each filter is an outlier that meets a channel of zeros: it costs integers only.
MODEL = """
import torch
from torch import nn


def make(bad: str = ""):
    torch.manual_seed(0)
    layers = []
    for index in range(6):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        with torch.no_grad():
            if str(index) in bad:
                conv.weight[:, 7, 1, 1] = 60.0
            conv.weight[7], conv.bias[7] = 0.0, 0.0
            conv.weight[:7] *= 2
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers).eval(), torch.zeros(1, 8, 8, 8)
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    samples = np.random.default_rng(0).standard_normal((6, 8, 8, 8)).astype(np.float32)
    samples[:, 7] = 0
    np.save(tmp_path / "x.npy", samples)
    return tmp_path


@pytest.mark.parametrize("bad", [(2,), (1, 4)])
def test_layers_made_bad_on_purpose_are_named_first(cli: Cli, work: Path, bad: tuple[int, ...]) -> None:
    words = "-".join(map(str, bad)) + "x"
    ended = cli("quantize", f"{work}/net.py:make", "-a", f"bad={words}", "--calibration", work / "x.npy", "--json")
    assert ended.code == 0, ended.stderr
    layers = ended.data["explanation"]["sensitivity"]["layers"]
    assert {layer["name"] for layer in layers[: len(bad)]} == {str(2 * index) for index in bad}
    assert sorted(layer["index"] for layer in layers) == list(range(6))


def test_excluding_the_named_layer_gains_what_was_promised(cli: Cli, work: Path) -> None:
    base = ("quantize", f"{work}/net.py:make", "-a", "bad=2x", "--calibration", work / "x.npy")
    ended = cli(*base)
    assert ended.code == 0, ended.stderr
    assert "--exclude 4" in ended.stdout
    before = cli(*base, "--json").data["explanation"]["sensitivity"]
    promised = next(layer["gain_db"] for layer in before["layers"] if layer["name"] == "4")
    after = cli(*base, "--exclude", "4", "--json").data["explanation"]
    assert after["float_layers"] == ["4"]
    # Observers, weights and biases are chosen anew, for what is left in integers: that may gain more.
    assert promised > 5
    assert after["sensitivity"]["output_db"] - before["output_db"] > promised - 1
    assert "4" not in {layer["name"] for layer in after["sensitivity"]["layers"]}


def test_a_layer_that_is_not_there_is_refused(cli: Cli, work: Path) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--exclude", "41")
    assert ended.code == 2
    assert "unknown layer '41'" in ended.stderr
    assert "conv2d" not in ended.stderr, "each layer is told once, not by its node's name too"


@pytest.mark.parametrize("option", [("--format", "onnx"), ("--agree",), ("--device", "fake")])
def test_an_option_of_files_is_refused_where_none_is_written(cli: Cli, work: Path, option: tuple[str, ...]) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", *option)
    assert (ended.code, ended.stdout) == (2, "")
    assert f"{option[0]} is for the files of --explain, --max-drop and --max-ms" in ended.stderr


def test_an_unknown_device_is_refused_before_the_work(cli: Cli, work: Path) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--explain", "--device", "phone")
    assert ended.code == 2
    assert "unknown device 'phone'" in ended.stderr
    assert "quantizing" not in ended.stderr


@pytest.mark.usefixtures("quick")
def test_explain_says_whether_int8_pays_and_why(cli: Cli, work: Path) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--explain", "-f", "onnx", "--max-secs", "2")
    assert ended.code == 0, ended.stderr
    assert "onnx: INT8 " in ended.stdout
    assert "million multiply-adds" in ended.stdout  # this network is small
    assert "CPU: " in ended.stdout


def test_the_observer_is_the_one_asked_for(cli: Cli, work: Path) -> None:
    base = ("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--json")
    found = {name: cli(*base, "--observer", name).data["explanation"] for name in ("minmax", "percentile")}
    assert {name: each["observer"] for name, each in found.items()} == {"minmax": "minmax", "percentile": "percentile"}
    assert cli(*base, "--observer", "maxmin").code == 2


def test_equalization_says_what_it_did_and_what_it_refused(cli: Cli, work: Path) -> None:
    text = (work / "net.py").read_text().replace("nn.ReLU()", "nn.ReLU6() if index == 3 else nn.ReLU()")
    (work / "net.py").write_text(text)
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--equalize")
    assert ended.code == 0, ended.stderr
    assert "Equalized: 0 → 2, 2 → 4, 4 → 6, 8 → 10" in ended.stdout
    assert "Not equalized: 6 → 8: 'hardtanh" in ended.stdout or "Not equalized: 6 → 8: 'relu6" in ended.stdout


def test_a_budget_needs_labels(cli: Cli, work: Path) -> None:
    ended = cli("quantize", f"{work}/net.py:make", "--calibration", work / "x.npy", "--max-drop", "0.5")
    assert ended.code == 2
    assert "give --evaluation PATH" in ended.stderr


def test_pictures_calibrate_as_declared_and_the_findings_are_told(cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8)\n"
    )
    (tmp_path / "pictures").mkdir()
    ramp = np.add.outer(np.arange(12), np.arange(12)) * 10
    for index in range(4):
        pixels = np.stack([(ramp + 40 * index + 20 * channel) % 256 for channel in range(3)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    base = ("quantize", f"{tmp_path}/net.py:make", "--calibration", tmp_path / "pictures")
    refused = cli(*base)
    assert refused.code == 2
    assert "declare it, as in --preprocess" in refused.stderr
    words = ("--preprocess", "mean=0.5", "--preprocess", "std=0.25", "--preprocess", "resize=stretch")
    ended = cli(*base, *words, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.data["samples"] == 4
    assert ended.data["findings"] == ["only 4 calibration samples, expected 32 or more: rare values are missed"]


def test_a_scheme_without_calibration_tells_no_ranges(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)\n"
    )
    ended = cli("quantize", f"{tmp_path}/net.py:make", "--scheme", "int8-weight-only")
    assert ended.code == 0, ended.stderr
    assert "int8-weight-only, without calibration: " in ended.stdout
    assert "clipped" not in ended.stdout


def test_schemes_that_change_no_weight_are_not_offered(cli: Cli) -> None:
    assert list(get_args(RoundedScheme)) == [name.value for name, scheme in SCHEMES.items() if scheme.rounded]
    ended = cli("quantize", "hetnet-fmnist", "--scheme", "fp16")
    assert ended.code == 2
    assert "'fp16' is not one of 'int8'" in " ".join(ended.stderr.split())
