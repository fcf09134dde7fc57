"""`edgefold history` as its user meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgefold.bundle.writer import Contract, write_bundle
from edgefold.device_bench import BenchOptions, bench, remember
from edgefold.report.content import Shipment
from edgefold.results import Code

Cli = Callable[..., Any]


def test_a_path_a_bundle_and_a_devices_name(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipment: Shipment
) -> None:
    measured = bench(tiny / "tiny.onnx", "fake", options=BenchOptions(gate_max_s=0))
    there = replace(measured, device=replace(measured.device, url="ssh://pi@bench.local"))
    remember([measured, there])
    (tmp_path / "devices.toml").write_text('[pi]\nurl = "ssh://pi@bench.local"\n')
    monkeypatch.setenv("EDGEFOLD_DEVICES", str(tmp_path / "devices.toml"))
    assert len(cli("history", tiny / "tiny.onnx", "--json").data) == 2
    (entry,) = cli("history", tiny / "tiny.onnx", "--device", "pi", "--json").data
    assert entry["device"] == "ssh://pi@bench.local"
    remember([one.measurement for one in shipment.variants if one.measurement is not None])
    bundle = tmp_path / "bundle"
    write_bundle(shipment, Contract(), bundle)
    assert len(cli("history", bundle, "--json").data) == 6
    assert [entry["artifact"] for entry in cli("history", bundle, "--limit", "1", "--json").data] == ["net-int8.pte"]


def test_nothing_found_is_one_sentence(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    ended = cli("history")
    assert (ended.code, ended.stdout) == (0, "nothing was measured yet; measure with: edgefold bench FILE\n")
    ended = cli("history", tiny / "tiny.onnx")
    assert (ended.code, ended.stdout) == (2, "")
    assert "and nothing else; measure with: edgefold bench FILE" in ended.stderr
    measured = bench(tiny / "tiny.onnx", "fake", options=BenchOptions(gate_max_s=0))
    remember([replace(measured, artifact=f"{number}.onnx") for number in range(7)])
    ended = cli("history", "else.onnx", "--device", "host", "--svg", tmp_path / "trend.svg")
    assert (ended.code, ended.stdout) == (2, "")
    assert "the history has nothing of 'else.onnx' on 'host'; it has" in ended.stderr
    assert ".onnx on fake and 2 more" in ended.stderr
    assert not (tmp_path / "trend.svg").exists()
    ended = cli("history", "--svg", tmp_path / "trend.png")
    assert (ended.code, ended.stdout) == (2, "")
    assert "give a name that ends in '.svg'" in ended.stderr
    assert not (tmp_path / "trend.png").exists()


def test_an_emulators_times_are_no_latency(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    measured = bench(tiny / "tiny.onnx", "fake", options=BenchOptions(gate_max_s=0))
    remember([measured, measured, replace(measured, threads=4), replace(measured, threads=4)])
    remember([replace(measured, runtime="runtime 1", codes=(Code.EMULATED,)) for _ in range(2)])
    told = cli("history", "--svg", tmp_path / "trend.svg").stdout
    rows = [line for line in told.splitlines() if "runtime 1 " in line]
    assert len(rows) == 2
    assert all(" emulated " in row and "µs" not in row and "ms" not in row for row in rows)
    trends = [line.partition(":")[0] for line in told.splitlines() if line.startswith("trend of")]
    name = f"trend of tiny.onnx on fake, {measured.runtime}"
    assert trends == [f"{name}, 1 thread", f"{name}, 4 threads"]
    assert (tmp_path / "trend.svg").read_text().count("<polyline") == 2


def test_an_unstable_median_is_no_figure(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    measured = bench(tiny / "tiny.onnx", "fake", options=BenchOptions(gate_max_s=0))
    remember([measured, replace(measured, interval_ns=(1e6, 3e6), codes=(Code.UNSTABLE,)), measured])
    told = cli("history", "--svg", tmp_path / "trend.svg").stdout
    assert "unstable [1.00 ms, 3.00 ms]" in told
    (trend,) = (line for line in told.splitlines() if line.startswith("trend of"))
    assert len(trend.rpartition(": ")[2]) == 2
    assert (tmp_path / "trend.svg").read_text().count("<circle") == 2
