"""Which form is chosen, and the reason that the plan gives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.errors import UsageError
from edgefold.export.capture import capture
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering
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
        self.stem, self.het, self.head = nn.Conv2d(3, 16, 1), HetConv2d(16, 16, 3, 4, padding=1), nn.Conv2d(16, 2, 1)

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
    assert layer.reason == "cheapest of 3 candidates (measured on fake)"
    assert {candidate.source for candidate in layer.candidates} == {"measured on fake"}
    assert (plan.lowering, plan.device, plan.gathers) == ("auto", "fake", 0)


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
        self.one, self.two = HetConv2d(16, 16, 3, 4, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=2)

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
