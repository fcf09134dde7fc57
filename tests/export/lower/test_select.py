"""Which form is chosen, and the reason that the plan gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.errors import UsageError
from edgefold.export.capture import capture
from edgefold.export.lower.budget import caps
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.fitted import MIN_LAYERS
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Candidate, Lowering, NumericClass
from edgefold.export.program import Program
from edgefold.models.blocks.hetconv import HetConv2d


@dataclass
class Fake:
    """Costs by lowering; the layers that were asked for are kept."""

    costs: dict[Lowering, float]
    source: str = "measured on fake"

    def cost_ns(self, geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> float | None:
        return self.costs.get(lowering)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.het, self.head = nn.Conv2d(3, 16, 1), HetConv2d(16, 16, 3, padding=1, p=4), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.het(F.relu(self.stem(x)))))


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Net().eval(), torch.randn(1, 3, 8, 8))


COSTS = {Lowering.DENSE: 3e5, Lowering.GROUPED: 2e5, Lowering.SPLIT: 1e5, Lowering.KEEP: 1e4}


@pytest.mark.parametrize("cheapest", [Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT])
def test_auto_takes_the_cheapest(program: Program, cheapest: Lowering) -> None:
    costs = Fake({**COSTS, cheapest: 5e4})
    plan = lower(program, format=Format.TFLITE, precision=Precision.FP32, costs=costs, device="fake").plan
    layer = plan.layers[1]
    assert layer.choice is cheapest
    gain = ", 50.0 µs faster than split for 5.9 kB more" if cheapest is Lowering.DENSE else ""
    assert layer.reason == f"cheapest of 3 candidates (measured on fake){gain}"
    assert {candidate.source for candidate in layer.candidates} == {"measured on fake"}
    assert (plan.lowering, plan.device, plan.gathers) == ("auto", "fake", 0)


def test_a_smaller_form_that_is_taken_on_a_tie_is_not_called_the_cheapest(program: Program) -> None:
    costs = Fake({**COSTS, Lowering.DENSE: 1.00e5, Lowering.GROUPED: 1.01e5, Lowering.SPLIT: 2e5})
    layer = lower(program, format=Format.TFLITE, precision=Precision.FP32, costs=costs, device="fake").plan.layers[1]
    assert layer.choice is Lowering.GROUPED
    assert layer.reason == "smaller than dense, which is faster by no more than 2 % (measured on fake)"


def test_measured_and_estimated_times_are_not_mixed(program: Program) -> None:
    costs = Fake({Lowering.DENSE: 1.0, Lowering.GROUPED: 2.0})  # split was not measured
    layer = lower(program, format=Format.ONNX, precision=Precision.FP32, costs=costs, device="adb://1").plan.layers[1]
    assert {candidate.source for candidate in layer.candidates} == {"estimated"}


def test_a_foreign_device_is_not_asked_of_the_table_of_this_host(program: Program) -> None:
    plan = lower(program, format=Format.ONNX, precision=Precision.FP32, device="ssh://board").plan
    assert {candidate.source for layer in plan.layers for candidate in layer.candidates} == {"estimated"}


class Cut(nn.Module):
    """A HetConv whose output's groups are cut by another one with other residues."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.one, self.two = HetConv2d(16, 16, 3, padding=1, p=4), nn.Conv2d(16, 16, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))))


@pytest.mark.parametrize(("saved_ns", "gathers"), [(1e9, 1), (10.0, 0)])
def test_a_gather_is_paid_only_where_the_layer_saves_more(saved_ns: float, gathers: int) -> None:
    captured = capture(Cut().eval(), torch.randn(1, 3, 8, 8))
    costs = Fake({Lowering.DENSE: saved_ns + 1.0, Lowering.SPLIT: saved_ns + 2.0, Lowering.GROUPED: 1.0, Lowering.KEEP: 0.5})
    plan = lower(captured, format=Format.ONNX, precision=Precision.FP32, costs=costs, device="fake").plan
    layer = plan.layers[1]
    assert plan.gathers == gathers
    assert layer.choice is (Lowering.GROUPED if gathers else Lowering.DENSE)
    assert ("with gathers of" in layer.reason) == bool(gathers)
    assert ("would need gathers" in layer.reason) != bool(gathers)


@pytest.mark.parametrize("lowering", list(Lowering))
def test_a_uniform_lowering_says_what_stands_in_for_it(program: Program, lowering: Lowering) -> None:
    plan = lower(program, format=Format.ONNX, precision=Precision.FP32, lowering=lowering).plan
    stem, het, _ = plan.layers
    assert stem.choice is Lowering.KEEP
    assert het.choice is (Lowering.DENSE if lowering is Lowering.KEEP else lowering)
    assert het.reason.startswith(f"asked for {lowering}")
    assert ("a mask of zeros has no ops of its own" in het.reason) == (lowering is Lowering.KEEP)


def test_an_unknown_lowering_gets_the_nearest_name(program: Program) -> None:
    with pytest.raises(UsageError, match="unknown lowering 'groupd'; did you mean 'grouped'"):
        lower(program, format=Format.ONNX, precision=Precision.FP32, lowering="groupd")


@pytest.mark.parametrize(("dense_ns", "choice"), [(0.99e5, Lowering.GROUPED), (0.97e5, Lowering.DENSE)])
def test_more_weights_need_a_gain_in_time(program: Program, dense_ns: float, choice: Lowering) -> None:
    costs = Fake({**COSTS, Lowering.DENSE: dense_ns, Lowering.GROUPED: 1e5, Lowering.SPLIT: 2e5})
    layer = lower(program, format=Format.TFLITE, precision=Precision.FP32, costs=costs, device="fake").plan.layers[1]
    assert layer.choice is choice


def test_a_shipped_table_is_asked_for_a_layer_that_it_holds(program: Program) -> None:
    """The same layer in the same size has measured times for all of its forms, under one geometry."""
    layer = lower(program, format=Format.ONNX, precision=Precision.FP32, device="fake").plan.layers[1]
    geometry = LayerGeometry.parse(layer.geometry)
    times = {(str(geometry), form, Format.ONNX, Precision.FP32): 1e3 for form in (Lowering.DENSE, Lowering.SPLIT)}
    times[str(geometry), Lowering.GROUPED, Format.ONNX, Precision.FP32] = 900.0
    table = CostTable("table x", "Test CPU", 1, {}, times)
    layer = lower(program, format=Format.ONNX, precision=Precision.FP32, device="fake", costs=table).plan.layers[1]
    assert {candidate.source for candidate in layer.candidates} == {"table x"}
    assert layer.reason == "cheapest of 3 candidates (table x)"


@pytest.mark.parametrize(
    ("installed", "source"),
    [
        ("onnxruntime 1.32.0", "table x"),
        ("onnxruntime 1.33.1", "estimated from table x, measured with onnxruntime 1.32.0; here it is onnxruntime 1.33.1"),
        (None, "estimated from table x, measured with onnxruntime 1.32.0; here it is not installed"),
    ],
)
def test_a_shipped_table_of_another_version_of_the_runtime_is_an_estimate(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: str | None, source: str
) -> None:
    """Layers that the table has, and those that are estimated from its other layers, name both versions."""
    known = lower(program, format=Format.ONNX, precision=Precision.FP32, device="fake").plan.layers[1].geometry
    times = {
        (known.replace("8x8", f"{size}x{size}"), form, Format.ONNX, Precision.FP32): 1e3 * size
        for size in range(8, 8 + 2 * MIN_LAYERS)
        for form in (Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT)
    }
    table = CostTable("table x", "Test CPU", 1, {"onnx": "onnxruntime 1.32.0"}, times)
    monkeypatch.setenv("EDGEFOLD_COSTS", str(tmp_path))
    monkeypatch.setattr("edgefold.export.lower.tables.cache.shipped_table", lambda: table)
    monkeypatch.setattr("edgefold.export.lower.tables.cache.installed_runtimes", lambda: {"onnx": installed} if installed else {})
    stem, layer, _ = lower(program, format=Format.ONNX, precision=Precision.FP32).plan.layers
    assert {candidate.source for candidate in layer.candidates} == {source}
    assert layer.chosen.estimated == (source != "table x")
    assert source in layer.reason
    assert stem.chosen.source == f"estimated from {source.removeprefix('estimated from ')}"


def test_a_budget_takes_the_bytes_where_they_cost_least(program: Program) -> None:
    dense = Fake({**COSTS, Lowering.DENSE: 1e4})
    free = lower(program, format=Format.ONNX, precision=Precision.FP32, costs=dense, device="fake").plan.layers[1]
    small = lower(program, format=Format.ONNX, precision=Precision.FP32, costs=dense, device="fake", budget_bytes=1).plan.layers[
        1
    ]
    assert (free.choice, small.choice) == (Lowering.DENSE, Lowering.SPLIT)
    assert small.reason == "cheapest of 3 candidates (measured on fake); dense would make the file too large"


def test_caps_follow_the_price_of_a_byte() -> None:
    def layer(*forms: tuple[int, float]) -> list[Candidate]:
        return [Candidate(Lowering.DENSE, NumericClass.FLOAT, 1, size, cost, "t") for size, cost in forms]

    layers = [layer((100, 10.0), (50, 60.0)), layer((100, 10.0), (60, 14.0)), layer((30, 5.0))]
    assert caps(layers, None) == caps(layers, 230) == [None, None, None]
    assert caps(layers, 200) == [None, 60, None]  # 0.1 a byte against 1.0
    assert caps(layers, 150) == caps(layers, 0) == [50, 60, None]
