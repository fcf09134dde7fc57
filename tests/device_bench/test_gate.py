"""The thermal gate on devices whose temperature is told in advance; nothing here sleeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.device_bench.benchmark import bench, bench_case
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.comparison import compare_cases
from edgefold.device_bench.gate import STEP_S, ThermalGate
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.results import Code, DeviceInfo

OPTIONS = BenchOptions()


def at(*temperatures: float | None) -> list[DeviceInfo]:
    return [replace(QUIET_DEVICE, temperature_c=value) for value in temperatures]


def passes(states: Sequence[DeviceInfo], options: BenchOptions = OPTIONS) -> tuple[float | None, bool, int]:
    """The temperature at the end, whether the gate was reached, and the number of pauses."""
    pauses: list[float] = []
    with FakeRunner(FakeDevice(states=states)) as runner:
        state, reached = ThermalGate(runner, options, pauses.append).cool_down()
    return state.temperature_c, reached, len(pauses)


def test_it_waits_until_the_device_is_cool() -> None:
    assert passes(at(50.0, 39.0, 36.5)) == (36.5, True, 2)
    assert passes(at(37.0)) == (37.0, True, 0)


def test_a_device_that_is_always_hot_never_passes() -> None:
    assert passes(at(70.0)) == (70.0, False, 30)
    assert passes(at(70.0), BenchOptions(gate_max_s=0)) == (70.0, False, 0)


def test_the_first_reading_is_no_idle_level() -> None:
    """It falls by a degree in four seconds: it was at work a moment ago."""
    falling = [58.0 - 0.5 * step for step in range(100)]
    assert passes(at(*falling)) == (43.0, False, 30)


def test_a_level_that_it_stays_at_is_the_idle_one() -> None:
    temperature, reached, pauses = passes(at(56.0, 52.0, 50.0, 49.0, 48.0, 48.0, 47.0, *[48.0, 47.5] * 20))
    assert (reached, pauses) == (True, 16)
    assert temperature is not None
    assert 47 <= temperature <= 48


def test_a_device_without_a_temperature_is_not_held_up() -> None:
    assert passes(at(None)) == (None, True, 0)


def test_what_is_known_of_the_idle_level_counts_for_the_next_case() -> None:
    pauses: list[float] = []
    states = at(*[45.0] * 16, 51.0, 46.9, 40.0, *[43.0] * 40)
    with FakeRunner(FakeDevice(states=states)) as runner:
        gate = ThermalGate(runner, OPTIONS, pauses.append)
        assert gate.cool_down()[1]
        assert len(pauses) == 15
        state, reached = gate.cool_down()  # 51 is too warm, 46.9 is not
        assert (state.temperature_c, reached, len(pauses)) == (46.9, True, 16)
        assert gate.cool_down()[1]
        # It has been seen at 40: a device that stays at 43 is not idle.
        assert not gate.cool_down()[1]


def test_one_file_and_a_comparison_wait_at_their_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    case = make_case(tiny / "tiny.onnx", seed=0)
    with FakeRunner(FakeDevice(states=at(70.0))) as runner:
        assert Code.HOT in bench_case(case, runner, OPTIONS, Launchers(runner)).codes
    assert pauses == [STEP_S] * 30
    with FakeRunner(FakeDevice(states=at(70.0))) as runner:
        assert Code.HOT in compare_cases(case, case, runner, OPTIONS, Launchers(runner)).codes
    assert len(pauses) == 60
    assert Code.HOT not in bench(tiny / "tiny.onnx", "fake").codes
    assert len(pauses) == 60
