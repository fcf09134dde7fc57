"""The whole flow through the command line and through the README's example."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefold

Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]

MODEL = """
import torch
from torch import nn

from edgefold.models.blocks import NaiveHetConv2d


class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.het = NaiveHetConv2d(width, width, 3, p=4, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.het(torch.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    np.save(folder / "calibration.npy", rng.standard_normal((32, 1, 8, 8)).astype(np.float32))
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 3
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return folder


@pytest.mark.usefixtures("quick")
def test_ship_and_everything_after_it(cli: Cli, work: Path) -> None:
    model, out = f"{work}/net.py:Net", work / "out"
    data = ("--calibration", work / "calibration.npy", "--evaluation", work / "data.npz")
    ended = cli("ship", model, "-a", "width=12", *data, "-f", "onnx", "-o", out)
    assert ended.code in (0, 1), ended.stderr  # an untrained network may lose more accuracy than is allowed
    for name in ("onnx-fp32", "onnx-int8"):
        assert re.search(rf"^ *{name} .*( ok|FAILED)", ended.stdout, re.MULTILINE), ended.stdout

    assert f"Bundle:{out}and{out}.zip;report:" in "".join(ended.stdout.split())  # lines may end anywhere

    summary = json.loads((out / "results" / "summary.json").read_text())
    assert len(summary["rows"]) == 2
    stable = not any("UNSTABLE" in row["codes"] for row in summary["rows"])  # another process may be at work here
    for row in summary["rows"]:
        assert row["size_bytes"] > 0
        assert row["median_ns"] > 0
        assert row["speedup"] > 0 if stable else row["speedup"] is None or row["speedup"] > 0
        assert row["accuracy"] is not None
        assert not {"OUTPUT_UNCHECKED", "OUTPUT_MISMATCH"} & set(row["codes"])
    fp32 = [row for row in summary["rows"] if row["precision"] == "fp32"]
    assert all(row["max_relative_error"] <= 1e-4 for row in fp32)

    manifest = json.loads((out / "manifest.json").read_text())
    het = next(layer for layer in manifest["fold"]["layers"] if layer["name"] == "het")
    assert het["folded"]
    assert het["ops_before"] > 100
    assert manifest["calibration"]["samples"] == 32
    assert not manifest["calibration"]["random"]
    (scales,) = manifest["scales"]
    assert scales["activations"]
    assert {scale["name"].split("/")[1] for scale in scales["branches"]} == {"group", "point"}

    again = cli("ship", model, "-a", "width=12", *data, "-f", "onnx", "-o", out)
    assert again.code == 2
    assert "exists already" in again.stderr

    report = cli("verify", out, model, "-a", "width=12", *data, "--json")
    assert report.code == 0, report.stderr
    assert [found["reference"] for found in report.data] == ["torch float32", "fake-quantized torch"]
    wrong = cli("verify", out / "artifacts" / "Net-fp32.onnx", model, "-a", "width=16", *data)
    assert wrong.code in (1, 2)

    measured = cli("bench", out, "--artifact", "onnx-int8", "--device", "fake", "--json")
    assert [found["artifact"] for found in measured.data] == ["Net-int8.onnx"]
    assert "multiply-adds" in cli("inspect", out / "artifacts" / "Net-int8.onnx").stdout
    np.save(work / "x.npy", np.load(work / "calibration.npy")[:1])
    top = cli("run", out, work / "x.npy", "--artifact", "onnx-int8", "--json").data["top"]
    with edgefold.load_bundle(out.with_name("out.zip")) as bundle:
        assert bundle.run("onnx-int8", np.load(work / "x.npy")).index == top[0]["index"]


@pytest.mark.usefixtures("quick")
def test_random_calibration_is_told(cli: Cli, work: Path) -> None:
    args = ("--calibration", "random", "-f", "onnx", "-p", "int8", "--device", "fake", "-o", work / "random", "--json")
    ended = cli("ship", f"{work}/net.py:Net", *args)
    assert ended.stdout, ended.stderr
    assert any("random data" in note for note in ended.data["notes"])
    assert "random data" in (work / "random" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", ["calibrate", "export", "measure"])
def test_an_interrupted_ship_leaves_nothing(work: Path, tmp_path: Path, stage: str, number: signal.Signals, code: int) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = Path(sys.executable).with_name("edgefold")
    command: list[str | Path] = [
        script,
        "ship",
        f"{work}/net.py:Net",
        "--calibration",
        work / "calibration.npy",
        "-f",
        "onnx",
        "-o",
        tmp_path / "out",
    ]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        seen = next((line for line in process.stderr if line.startswith(stage)), None)
        assert seen is not None
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == [temporary]
    assert [path for path in temporary.iterdir() if path.name.startswith("edgefold")] == []


@pytest.mark.usefixtures("quick")
def test_fold_export_and_quantize(cli: Cli, work: Path) -> None:
    model = f"{work}/net.py:Net"
    assert "het" in cli("fold", model).stdout

    plan = cli("fold", model, "-a", "width=4", "--json").data
    assert plan["schema"] == "edgefold.FoldPlan/1"

    exported = cli("export", model, "-f", "onnx", "--json")
    assert exported.code == 0, exported.stderr
    assert Path(exported.data["path"]).name == "Net-fp32.onnx"
    assert Path("Net-fp32.onnx").is_file()
    assert exported.data["lowering"]["timing"]["winner"] in ("auto", "dense", "grouped", "split")

    size = Path("Net-fp32.onnx").stat().st_size
    fastest = cli("export", model, "-f", "onnx", "--force", "--no-timing", "--lowering", "auto", "--json")
    assert fastest.data["lowering"]["lowering"] == "auto"
    assert cli("export", model, "-f", "onnx", "--force", "--no-timing", "--lowering", "fast").code == 2

    small = cli("export", model, "-f", "onnx", "--force", "--no-timing", "--max-size", f"{size / 1000 + 50:.1f}kB")
    assert small.code == 0, small.stderr
    assert "bytes, within the" in small.stdout
    refused = cli("export", model, "-f", "onnx", "--force", "--max-size", "1kB")
    assert refused.code == 2
    assert "is within 1,000 bytes, the smallest has" in refused.stderr
    assert cli("export", model, "-f", "onnx", "--force", "--max-size", "small").code == 2

    data = ("--calibration", work / "calibration.npy", "--evaluation", work / "data.npz")
    found = cli("quantize", model, *data, "--json").data
    assert found["samples"] == 32
    assert {layer["name"] for layer in found["sensitivity"]["layers"]} >= {"stem", "head"}
    assert found["top1"] is not None


@pytest.mark.usefixtures("quick")
def test_costs_of_a_models_layers(cli: Cli, work: Path) -> None:
    arguments = ("fold", f"{work}/net.py:Net", "--costs", "host", "-f", "onnx", "-p", "fp32")
    found = cli(*arguments, "--json")
    assert found.code == 0, found.stderr
    assert found.data["schema"] == "edgefold.FoldCosts/1"
    assert found.data["plan"]["schema"] == "edgefold.FoldPlan/1"
    assert found.data["costs"]["schema"] == "edgefold.CostTable/1"
    assert Path(found.data["kept_in"]).is_file() == bool(found.data["measured"])
    assert found.data["measured"] + len(found.data["noisy"]) == 1
    again = cli(*arguments)
    assert again.code == 0, again.stderr
    assert "known before" in again.stdout
    assert cli("fold", f"{work}/net.py:Net", "--costs", "fake").code == 2


def test_models_lists_the_trained_network(cli: Cli) -> None:
    found = {info["name"]: info for info in cli("models", "--json").data}
    assert found["hetnet-fmnist"]["trained"]
    assert "hetnet-fmnist" in cli("models").stdout


def test_train_writes_a_run_that_resumes(cli: Cli, work: Path) -> None:
    args = (
        "train",
        "hetnet",
        "--data",
        work / "data.npz",
        "-o",
        work / "run",
        "-a",
        "width=8",
        "-a",
        "resolution=8",
        "-a",
        "num_classes=3",
    )
    first = cli(*args, "--epochs", "1", "--batch-size", "8", "--json")
    assert first.code == 0, first.stderr
    assert first.data["schema"] == "edgefold.Recipe/1"
    assert (work / "run" / "hetnet.safetensors").is_file()
    assert cli(*args, "--epochs", "1", "--batch-size", "8").code == 2  # a run is there, and --resume was not given
    assert cli(*args, "--epochs", "1", "--batch-size", "8", "--resume").code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_example_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})

    assert (tmp_path / "my-net.zip").is_file()
    top = capsys.readouterr().out
    assert top.count("(") == 3
    with edgefold.load_bundle(tmp_path / "my-net") as bundle:
        assert len(bundle.names) == 6, bundle.shipment.variants
        assert bundle.shipment.passed, [variant.failure or variant.parity for variant in bundle.shipment.variants]


def test_commands_in_the_readme_exist() -> None:
    from edgefold.cli.app import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert set(re.findall(r"^edgefold (\w+)", text, re.MULTILINE)) <= known
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
