"""The end of the lowering `auto`: the whole network in each form, and the limit on the file's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision, sha256_of
from edgefold.device_bench import closing
from edgefold.device_bench.closing import Request, Written, emit_fastest
from edgefold.device_bench.race import Race, RaceOptions
from edgefold.device_bench.runners.fake import QUIET_DEVICE
from edgefold.errors import RuntimeFailure, UsageError
from edgefold.export.capture import capture
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.plan import Lowering
from edgefold.export.program import Program
from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.quantize.calibrate import attach, calibrate

SHORT = RaceOptions(processes=1, blocks=2, turn_s=0.0)


@dataclass
class Costs:
    """Costs by lowering."""

    costs: dict[Lowering, float]
    source: str = "measured on fake"

    def cost_ns(self, geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> float | None:
        return self.costs.get(lowering)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.one, self.two = HetConv2d(16, 16, 3, padding=1, p=4), HetConv2d(16, 16, 3, padding=1, p=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(F.relu(self.stem(x)))))))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(1, 3, 8, 8))


def costs(dense: float = 1.0e5, grouped: float = 0.9e5, split: float = 1.1e5) -> Costs:
    return Costs({Lowering.DENSE: dense, Lowering.GROUPED: grouped, Lowering.SPLIT: split, Lowering.KEEP: 1e4})


def emitted(program: Program, out: Path, **request: Any) -> Written:
    wanted = Request(**{"format": Format.ONNX, "precision": Precision.FP32, "costs": costs(), "race": SHORT, **request})
    return emit_fastest(program, wanted, EmitOptions(), out, lambda: None)


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets each form take the time given, and returns the list that the sizes of the races are put into."""

    def fix(*times: float) -> list[int]:
        seen: list[int] = []

        def race(cases: list[object], *_: object) -> Race:
            seen.append(len(cases))
            turns = tuple((time,) * 8 for time in times[: len(cases)])
            return Race("onnxruntime 0", QUIET_DEVICE, turns)

        monkeypatch.setattr(closing, "race", race)
        return seen

    return fix


def groups(path: Path) -> list[int]:
    """The groups of each convolution in an ONNX file."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return [next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1) for node in nodes]


def test_the_forms_that_differ_are_timed_on_this_machine(program: Program, tmp_path: Path) -> None:
    written = emitted(program, tmp_path / "net.onnx")
    timing = written.plan.timing
    assert timing is not None
    assert timing.rounds in (2, 4, 6, 8)  # as many races of two as it takes
    assert timing.runtime.startswith("onnxruntime ")
    assert timing.winner in ("auto", "dense", "split")
    by_name = {form.name: form for form in timing.forms}
    assert list(by_name) == ["auto", "dense", "grouped", "split", "keep"]
    assert (by_name["grouped"].note, by_name["keep"].note) == ("the same as auto", "the same as dense")
    for name in ("dense", "split"):
        ratio = by_name[name].ratio
        assert ratio is not None
        assert ratio.low <= ratio.value <= ratio.high
    assert written.artifact.path == tmp_path / "net.onnx"
    assert written.artifact.sha256 == sha256_of(tmp_path / "net.onnx")
    assert written.plan.lowering == "auto"


def test_a_uniform_form_that_is_faster_wins(program: Program, tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    seen = raced(100.0, 80.0, 120.0)
    written = emitted(program, tmp_path / "net.onnx")
    timing = written.plan.timing
    assert seen == [3]
    assert timing is not None
    assert timing.winner == "dense"
    assert timing.reason == "dense for all layers takes 0.800 [0.800, 0.800] of the time that the choice layer by layer takes"
    assert groups(tmp_path / "net.onnx") == [1, 1, 1, 1]
    stem, one, _, _ = written.plan.layers
    assert one.choice is Lowering.DENSE
    assert one.reason.startswith("the whole network was timed: dense")
    assert stem.reason == "asked for dense, but the weight has no separate channel groups"


def test_a_tie_keeps_the_choice(program: Program, tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    raced(100.0, 99.0, 120.0)
    written = emitted(program, tmp_path / "net.onnx")
    assert written.plan.timing is not None
    assert written.plan.timing.winner == "auto"
    assert groups(tmp_path / "net.onnx") == [1, 4, 1, 4, 1, 1]
    assert written.plan.layers[1].reason == "cheapest of 3 candidates (measured on fake)"


def test_a_race_that_does_not_tell_goes_on(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = ((100.0,) * 8, (80.0, 80.0, 110.0, 110.0) * 2, (120.0,) * 8)
    calm = ((100.0,) * 80, (90.0,) * 80, (120.0,) * 80)
    races = [noisy, calm, noisy]
    monkeypatch.setattr(closing, "race", lambda *_: Race("onnxruntime 0", QUIET_DEVICE, races.pop(0)))
    timing = emitted(program, tmp_path / "net.onnx").plan.timing
    assert timing is not None
    assert (timing.winner, timing.rounds, len(races)) == ("dense", 44, 1)


def test_a_race_that_never_tells_ends(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def race(*_: object) -> Race:
        seen.append(1)
        return Race("onnxruntime 0", QUIET_DEVICE, ((100.0,) * 8, (60.0, 60.0, 140.0, 140.0) * 2, (120.0,) * 8))

    monkeypatch.setattr(closing, "race", race)
    timing = emitted(program, tmp_path / "net.onnx").plan.timing
    assert timing is not None
    assert (timing.winner, len(seen)) == ("auto", closing.RACES)


def test_a_form_without_a_chance_is_not_written(program: Program, tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    seen = raced(100.0, 50.0)
    written = emitted(program, tmp_path / "net.onnx", costs=costs(dense=3e5))
    assert seen == [2]
    assert written.plan.timing is not None
    assert written.plan.timing.forms[1].note == "its layers take 3.3 times as long by their measured costs"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"timing": False}, "not timed: it was not wanted"),
        ({"lowering": "dense"}, "not timed: dense was asked for"),
        ({"device": "fake"}, "not timed: the fake device draws its times"),
        ({"device": "fake", "timing": True}, "not timed: the fake device draws its times"),
        ({"device": "ssh://board"}, "not timed: 'ssh://board' is not this machine"),
    ],
)
def test_what_is_not_timed_says_so(
    program: Program, tmp_path: Path, raced: Callable[..., list[int]], request_: dict[str, Any], reason: str
) -> None:
    seen = raced(100.0, 1.0, 1.0)
    plan = emitted(program, tmp_path / "net.onnx", **request_).plan
    assert (plan.timing, plan.reason, seen) == (None, reason, [])


def test_an_emulated_device_never_chooses(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Emulated:
        def __enter__(self) -> Emulated:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def info(self) -> Any:
            return replace(QUIET_DEVICE, emulated=True)

    monkeypatch.setattr(closing, "open_runner", lambda device: Emulated())
    plan = emitted(program, tmp_path / "net.onnx", device="adb://phone", timing=True).plan
    assert plan.timing is None
    assert plan.reason == "not timed: 'adb://phone' is emulated, and emulated devices never choose"


def test_a_race_that_fails_keeps_the_choice(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def race(*_: object) -> Race:
        raise RuntimeFailure("the onnx runtime crashed")

    monkeypatch.setattr(closing, "race", race)
    plan = emitted(program, tmp_path / "net.onnx").plan
    assert (plan.timing, plan.reason) == (None, "not timed: the onnx runtime crashed")


def test_a_network_with_one_form_is_not_timed(tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    seen = raced(100.0, 1.0)
    single = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    plan = emitted(single, tmp_path / "net.onnx").plan
    assert (plan.timing, plan.reason, seen) == (None, "not timed: every uniform lowering is the same network", [])


@pytest.fixture(scope="module")
def integers() -> Program:
    """A calibrated network of 3, 12 and 12 channels."""
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 4, 1))
    image = torch.randn(1, 3, 8, 8)
    captured = capture(net.eval(), image)
    return replace(captured, graph=attach(captured.graph, calibrate(captured.graph, [(image,)], observer="minmax")))


def test_integers_may_win_with_wider_channels(integers: Program, tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    program = integers
    seen = raced(100.0, 80.0)
    plan = emitted(program, tmp_path / "net.onnx", precision=Precision.INT8).plan
    assert seen == [2]
    assert plan.timing is not None
    assert (plan.timing.winner, plan.wide) == ("wide", True)
    assert plan.timing.reason.startswith("the choice with more channels takes 0.800")
    raced(100.0, 99.5)
    plan = emitted(program, tmp_path / "kept.onnx", precision=Precision.INT8).plan
    assert plan.timing is not None
    assert (plan.timing.winner, plan.wide) == ("auto", False)
    assert "the nearest is wide" in plan.timing.reason


@pytest.mark.parametrize(("native", "races"), [(True, [4]), (False, [2])])
def test_integers_may_win_with_columns_as_channels(
    tmp_path: Path, raced: Callable[..., list[int]], native: bool, races: list[int]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    image = torch.randn(1, 3, 48, 48)
    program = edgefold.quantize_model(net, image, calibration=[image]).program
    seen = raced(100.0, 99.0, 90.0, 80.0)
    plan = emitted(program, tmp_path / "net.onnx", precision=Precision.INT8, native=native).plan
    assert (seen, plan.columns) == (races, native)
    if native:
        assert plan.timing is not None
        assert plan.timing.reason.startswith("the choice with a few columns as channels takes 0.800")


@pytest.mark.parametrize(("native", "races"), [(True, [2]), (False, [])])
def test_columns_as_channels_need_a_named_device(
    integers: Program, tmp_path: Path, raced: Callable[..., list[int]], native: bool, races: list[int]
) -> None:
    seen = raced(100.0, 80.0)
    plan = emitted(integers, tmp_path / "net.tflite", format=Format.TFLITE, precision=Precision.INT8, native=native).plan
    assert (seen, plan.wide) == (races, native)


def test_a_limit_on_the_size_takes_smaller_forms(program: Program, tmp_path: Path) -> None:
    prefers_dense = costs(dense=0.5e5)
    large = emitted(program, tmp_path / "large.onnx", costs=prefers_dense, timing=False)
    assert [layer.choice for layer in large.plan.layers[1:3]] == [Lowering.DENSE, Lowering.DENSE]
    limit = large.artifact.size_bytes - 3000  # a dense layer has 9,216 bytes of weights, a grouped one 3,328
    small = emitted(program, tmp_path / "small.onnx", costs=prefers_dense, timing=False, max_size_bytes=limit)
    assert small.artifact.size_bytes <= limit
    assert sorted(layer.choice for layer in small.plan.layers[1:3]) == [Lowering.DENSE, Lowering.GROUPED]
    assert "above the" in small.plan.reason
    assert "so 1 of them have smaller forms (+40.0 µs by their costs)" in small.plan.reason
    wide = emitted(program, tmp_path / "wide.onnx", costs=prefers_dense, timing=False, max_size_bytes=10**6)
    assert wide.artifact.sha256 == large.artifact.sha256
    assert "within the 1,000,000 that are allowed" in wide.plan.reason


def test_a_size_that_no_form_has_is_refused(program: Program, tmp_path: Path) -> None:
    for lowering in ("auto", "dense"):
        with pytest.raises(UsageError, match="is within 1,000 bytes, the smallest has"):
            emitted(program, tmp_path / "net.onnx", max_size_bytes=1000, lowering=lowering, timing=False)
    assert not (tmp_path / "net.onnx").exists()


def test_a_form_above_the_limit_does_not_race(program: Program, tmp_path: Path, raced: Callable[..., list[int]]) -> None:
    seen = raced(100.0, 50.0)
    size = emitted(program, tmp_path / "auto.onnx", timing=False).artifact.size_bytes
    written = emitted(program, tmp_path / "net.onnx", max_size_bytes=size + 4000)
    assert seen == [2]
    assert written.plan.timing is not None
    assert "bytes are more than allowed" in written.plan.timing.forms[1].note
    assert written.artifact.size_bytes <= size + 4000
