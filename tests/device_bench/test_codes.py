"""Each code is triggered by a device that shows what it stands for, and a quiet device has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.results import Code, CoreInfo, DeviceInfo, Measurement

OUTPUT = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(1, 1, 4, 16, 16)
# Enough time for the standard minimum: 64 samples of 8 ms are 0.5 s.
SLOW = 8.2e6


def measured(
    tiny: Path, device: FakeDevice, *, reference: Sequence[NDArray[Any]] | None = (OUTPUT[0],), **options: Any
) -> Measurement:
    case = make_case(tiny / "tiny.onnx", seed=0)
    device.outputs = device.outputs or (OUTPUT,)
    with FakeRunner(device) as runner:
        return bench_case(case, runner, BenchOptions(gate_max_s=0, **options), Launchers(runner), reference=reference)


def steady(model: str, process: int) -> float:
    return SLOW


def changed(**fields: Any) -> DeviceInfo:
    return replace(QUIET_DEVICE, **fields)


def test_a_quiet_device_has_no_codes(tiny: Path) -> None:
    result = measured(tiny, FakeDevice(latency_ns=steady))
    assert result.codes == ()
    assert result.median_ns == pytest.approx(SLOW, rel=0.01)
    assert result.interval_ns[0] < result.median_ns < result.interval_ns[1]
    assert result.peak_rss_bytes == 64 << 20
    assert result.parity[0].max_abs_error == 0


GOVERNED = changed(cores=(CoreInfo(0, "schedutil", 1, 2, 3),))
LIMITED = changed(cores=(CoreInfo(0, "performance", 1, 2, 2_000_000),))


@pytest.mark.parametrize(
    ("code", "device"),
    [
        (Code.UNSTABLE, FakeDevice(latency_ns=lambda model, process: SLOW * (1 + process % 2))),
        (Code.NOT_CONVERGED, FakeDevice(latency_ns=steady, converged=False)),
        (Code.FEW_SAMPLES, FakeDevice(latency_ns=steady, samples=63)),
        (Code.FEW_SAMPLES, FakeDevice(latency_ns=lambda model, process: 1e6)),
        (Code.THROTTLED, FakeDevice(latency_ns=steady, states=(QUIET_DEVICE, changed(thermal_status=2)))),
        (Code.THROTTLED, FakeDevice(latency_ns=steady, states=(QUIET_DEVICE,) * 2 + (LIMITED,))),
        (Code.HOT, FakeDevice(latency_ns=steady, states=(changed(temperature_c=61.0),))),
        (Code.GOVERNOR_NOT_PERFORMANCE, FakeDevice(latency_ns=steady, states=(GOVERNED,))),
        (Code.FREQUENCY_UNKNOWN, FakeDevice(latency_ns=steady, states=(changed(cores=(CoreInfo(0),)),))),
        (Code.LOW_BATTERY, FakeDevice(latency_ns=steady, states=(changed(battery_percent=19),))),
        (Code.LOADED, FakeDevice(latency_ns=steady, states=(changed(load_1min=1.2),))),
        (Code.EMULATED, FakeDevice(latency_ns=steady, states=(changed(emulated=True),))),
        (Code.FALLBACK_OPS, FakeDevice(latency_ns=steady, fallback_ops=("aten::hardswish",))),
        (Code.OUTPUT_MISMATCH, FakeDevice(latency_ns=steady, outputs=(OUTPUT + 0.01,))),
        (Code.OUTPUT_MISMATCH, FakeDevice(latency_ns=steady, outputs=(OUTPUT[..., :8],))),
    ],
)
def test_each_code_has_its_cause(tiny: Path, code: Code, device: FakeDevice) -> None:
    assert code in measured(tiny, device).codes


def test_heat_that_slows_down_is_throttling_and_heat_alone_is_not(tiny: Path) -> None:
    states = (changed(temperature_c=35.0),) * 2 + (changed(temperature_c=48.0),)
    slowing = FakeDevice(latency_ns=lambda model, process: SLOW * 1.05**process, states=states)
    assert Code.THROTTLED in measured(tiny, slowing).codes
    assert Code.THROTTLED not in measured(tiny, FakeDevice(latency_ns=steady, states=states)).codes


def test_without_a_reference_the_outputs_are_unchecked(tiny: Path) -> None:
    assert measured(tiny, FakeDevice(latency_ns=steady), reference=None).codes == (Code.OUTPUT_UNCHECKED,)


def test_every_code_is_covered() -> None:
    marks = test_each_code_has_its_cause.pytestmark  # type: ignore[attr-defined]  # pytest puts it there
    covered = {case[0] for case in marks[0].args[1]} | {Code.OUTPUT_UNCHECKED}
    assert covered == set(Code)
