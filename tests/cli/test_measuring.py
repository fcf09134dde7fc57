"""`edgefold profile`, `diagnose` and `bench --tool` as their user meets them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from edgefold.cli.bench_tables import measured_table
from edgefold.device_bench import DeviceStatus, bench
from edgefold.device_bench.runners.fake import QUIET_DEVICE
from edgefold.results import OutputParity

Cli = Callable[..., Any]
TOOL = """#!/bin/sh
echo "INFO: Inference timings in us: Init: 5685, First inference: 1853, Warmup (avg): 1446.25, Inference (avg): 1457.5"
"""


def test_profile_names_ops_and_their_work(cli: Cli, tiny: Path) -> None:
    found = cli("profile", tiny / "tiny.tflite", "--json").data
    assert found["schema"] == "edgefold.OpProfile/1"
    assert sum(op["share"] for op in found["ops"]) == pytest.approx(1)
    assert {op["macs"] for op in found["ops"]} >= {9 * 3 * 8 * 256, 9 * 8 * 4 * 256}
    table = cli("profile", tiny / "tiny.onnx", "--top", "1")
    assert table.code == 0, table.stderr
    assert "slowest first" in table.stdout
    assert "Conv" in table.stdout


def test_diagnose_says_why(cli: Cli, tiny: Path) -> None:
    found = cli("diagnose", tiny / "tiny.onnx", "--json").data
    assert found["schema"] == "edgefold.SlownessReport/1"
    assert found["roofline"]["bytes_per_s"] > 0
    told = cli("diagnose", tiny / "tiny.onnx")
    assert told.code == 0, told.stderr
    assert "this device at best" in told.stdout
    assert "of it reached" in told.stdout


def test_the_thermal_status_is_told_in_androids_words(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = DeviceStatus("phone", "adb://X", "ready", info=replace(QUIET_DEVICE, thermal_status=3))
    monkeypatch.setattr("edgefold.device_bench.devices", lambda urls, ssh_config: [hot])
    assert "thermal status severe" in cli("devices", "phone").stdout


def test_a_tool_measures(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    tool = tmp_path / "benchmark_model"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    found = cli("bench", tiny / "tiny.tflite", "--tool", tool, "--processes", "2", "--json").data
    assert found["runtime"] == "tflite by benchmark_model"
    assert [run["samples_ns"] for run in found["runs"]] == [[1_457_500]] * 2
    assert "OUTPUT_UNCHECKED" in found["codes"]
    # Memory is what it does not tell.
    assert " – " in cli("bench", tiny / "tiny.tflite", "--tool", tool, "--processes", "1").stdout


def test_the_table_tells_by_how_many_steps_outputs_differ(tiny: Path) -> None:
    found = bench(tiny / "tiny.onnx", "fake")
    parity = (
        OutputParity("a", 0.0, 0.0, None),
        OutputParity("b", 0.5, 0.1, 20.0, 1.0, 0.5),
        OutputParity("c", 1.5, 0.1, 20.0, 3.0, 0.5),
    )
    made, *_ = measured_table([("int8", replace(found, parity=parity)), ("fp32", found)])
    assert isinstance(made, Table)
    (column,) = [each for each in made.columns if each.header == "steps off"]
    assert list(column.cells) == ["3", ""]


@pytest.mark.usefixtures("quick")
def test_what_is_kept_is_told_beside_the_result(cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = cli("bench", tiny / "tiny.tflite", "--keep", "--processes", "1", "--no-remember", "--json")
    assert ended.data["artifact"] == "tiny.tflite"
    (place,) = re.findall(r"^kept on host: (\S+)$", ended.stderr, re.MULTILINE)
    assert [path.name for path in Path(place).rglob("model.tflite")] == ["model.tflite"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tool", "none"), "tool 'none' does not exist"),
        (("--tool", "{tool}", "--device", "host", "--device", "fake"), "--tool takes one device and files of one format"),
    ],
)
def test_tools_that_cannot_be_used(cli: Cli, tiny: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    (tmp_path / "tool").touch()
    ended = cli("bench", tiny / "tiny.tflite", *(word.format(tool=tmp_path / "tool") for word in arguments))
    assert ended.code == 2
    assert words in ended.stderr
