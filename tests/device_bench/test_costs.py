"""What lowerings of layers cost on a device: measured, kept, gone on with, and used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.device_bench import costs
from edgefold.device_bench.costs import LayerCosts, forms, layer_geometries, measure_costs, measure_layer
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions
from edgefold.device_bench.runners.fake import QUIET_DEVICE
from edgefold.device_bench.runners.host import HostRunner
from edgefold.errors import ArtifactError, RuntimeFailure, UsageError
from edgefold.export.capture import capture
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.lower import lower
from edgefold.export.lower.tables.cache import cached_table, installed_runtimes, save_table, table_path
from edgefold.export.plan import Lowering
from edgefold.models.blocks.hetconv import HetConv2d

LAYER = LayerGeometry(8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (4, 4), ((4, 4),) * 2, True)
OTHER = replace(LAYER, space=(5, 5))
BOARD = replace(QUIET_DEVICE, url="ssh://board")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFOLD_COSTS", str(tmp_path / "costs"))
    return tmp_path / "costs"


class Board:
    """An open runner whose device is never asked for more than its state."""

    url = "ssh://board"

    def __init__(self, emulated: bool = False) -> None:
        self._info = replace(BOARD, emulated=emulated)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> Any:
        return self._info


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LayerGeometry, Format, Precision]]:
    """A board on which grouped takes half the time of dense; the layers that it was asked for."""
    asked: list[tuple[LayerGeometry, Format, Precision]] = []

    def measure(geometry: LayerGeometry, form: Format, precision: Precision, *_: object) -> LayerCosts:
        asked.append((geometry, form, precision))
        times = {Lowering.DENSE: 2000.0, Lowering.GROUPED: 1000.0, Lowering.SPLIT: 3000.0}
        return LayerCosts(geometry, form, precision, f"{form} runtime 1", times, 0.2 if geometry.space == (9, 9) else 0.0)

    monkeypatch.setattr(costs, "open_runner", lambda device, ssh_config=None: Board())
    monkeypatch.setattr(costs, "measure_layer", measure)
    return asked


def test_a_layer_is_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RACE", RaceOptions(processes=1, blocks=2, turn_s=0.0))
    with HostRunner() as runner:
        found = measure_layer(LAYER, Format.ONNX, Precision.INT8, runner, Launchers(runner))
    assert set(found.times_ns) == {Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT}
    assert min(found.times_ns.values()) > 0
    assert found.runtime == installed_runtimes()["onnx"]
    assert found.noise >= 0
    table = found.table("measured on host", QUIET_DEVICE)
    assert table.cost_ns(LAYER, Lowering.KEEP, Format.ONNX, Precision.INT8) == found.times_ns[Lowering.GROUPED]


def test_what_is_known_is_not_measured_again(board: list[Any]) -> None:
    steps: list[int] = []
    first = measure_costs([LAYER, LAYER], "ssh://board", formats=[Format.ONNX], stage=steps.append)
    assert (first.measured, first.known, steps) == (2, 0, [2])
    second = measure_costs([LAYER, OTHER], "ssh://board", formats=[Format.ONNX], stage=steps.append)
    assert (second.measured, second.known, steps) == (2, 2, [2, 2])
    assert [key[0] for key in board] == [LAYER, LAYER, OTHER, OTHER]
    third = measure_costs([LAYER], "ssh://board", formats=[Format.ONNX], again=True)
    assert (third.measured, third.known) == (2, 0)
    assert third.table.cost_ns(OTHER, Lowering.DENSE, Format.ONNX, Precision.FP32) is None


def test_a_run_that_breaks_off_goes_on_where_it_was(board: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    good = costs.measure_layer

    def broken(geometry: LayerGeometry, *rest: Any) -> LayerCosts:
        if geometry == OTHER:
            raise RuntimeFailure("the runtime broke")
        return good(geometry, *rest)

    monkeypatch.setattr(costs, "measure_layer", broken)
    with pytest.raises(RuntimeFailure):
        measure_costs([LAYER, OTHER], "ssh://board")
    monkeypatch.setattr(costs, "measure_layer", good)
    found = measure_costs([LAYER, OTHER], "ssh://board")
    assert (found.measured, found.known) == (6, 6)


def test_noisy_layers_are_left_out(board: list[Any]) -> None:
    noisy = replace(LAYER, space=(9, 9))
    found = measure_costs([LAYER, noisy], "ssh://board", formats=[Format.ONNX], precisions=[Precision.FP32])
    assert (found.measured, len(found.noisy)) == (1, 1)
    assert found.table.cost_ns(noisy, Lowering.DENSE, Format.ONNX, Precision.FP32) is None


def test_another_version_of_the_runtime_drops_its_older_times(board: list[Any]) -> None:
    measure_costs([LAYER], "ssh://board", formats=[Format.ONNX, Format.TFLITE], precisions=[Precision.FP32])
    table = cached_table("ssh://board")
    assert table is not None
    save_table("ssh://board", replace(table, runtimes={**table.runtimes, "onnx": "onnx runtime 0"}))
    measure_costs([OTHER], "ssh://board", formats=[Format.ONNX], precisions=[Precision.FP32])
    after = cached_table("ssh://board")
    assert after is not None
    known = {(key[0], key[2]) for key in after.times_ns}
    assert known == {(str(LAYER), Format.TFLITE), (str(OTHER), Format.ONNX)}


def test_devices_whose_times_mean_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="fake device draws its times"):
        measure_costs([LAYER], "fake")
    monkeypatch.setattr(costs, "open_runner", lambda device, ssh_config=None: Board(emulated=True))
    with pytest.raises(UsageError, match="'adb://phone' is emulated"):
        measure_costs([LAYER], "adb://phone")


def test_the_forms_of_a_layer() -> None:
    assert forms(LAYER) == [Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT]
    many = replace(LAYER, in_channels=64, out_channels=64, groups=((2, 2),) * 32)
    assert forms(many) == [Lowering.DENSE, Lowering.GROUPED]
    assert forms(replace(LAYER, groups=(), point=False)) == []


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), HetConv2d(8, 8, 3, padding=1, p=2), nn.Conv2d(8, 2, 1)).eval()


def test_a_devices_table_chooses_before_any_other(board: list[Any], net: nn.Module) -> None:
    program = capture(net, torch.randn(1, 3, 4, 4))
    assert layer_geometries(program) == [LAYER]
    measure_costs([LAYER], "ssh://board")
    for device, source in (("ssh://board", "measured on ssh://board"), ("ssh://other", "estimated")):
        layer = lower(program, format=Format.ONNX, precision=Precision.FP32, device=device).plan.layers[1]
        assert {candidate.source for candidate in layer.candidates} == {source}


def test_this_machines_table_holds_for_the_installed_runtimes_only(net: nn.Module) -> None:
    times = {
        (str(LAYER), lowering, form, Precision.FP32): 1000.0 for lowering in forms(LAYER) for form in (Format.ONNX, Format.TFLITE)
    }
    runtimes = {**installed_runtimes(), "tflite": "ai-edge-litert 0.0"}
    save_table("host", CostTable("measured on host", "Test CPU", 1, runtimes, times))
    table = cached_table("host")
    assert table is not None
    assert {key[2] for key in table.times_ns} == {Format.ONNX}
    layer = lower(capture(net, torch.randn(1, 3, 4, 4)), format=Format.ONNX, precision=Precision.FP32).plan.layers[1]
    assert {candidate.source for candidate in layer.candidates} == {"measured on host"}


def test_devices_have_files_of_their_own(folder: Path) -> None:
    names = {table_path(device).name for device in ("host", "ssh://a@b", "ssh://a-b", "adb://1", "../../etc")}
    assert len(names) == 5
    assert all("/" not in name and not name.startswith(".") for name in names)
    assert cached_table("adb://1") is None


def test_a_damaged_table_is_told(folder: Path) -> None:
    folder.mkdir()
    table_path("adb://1").write_text(json.dumps({"schema": "edgefold.CostTable/1"}))
    with pytest.raises(ArtifactError, match="malformed"):
        cached_table("adb://1")
