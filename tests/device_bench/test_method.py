"""The steps of a measurement on a fake device, and options that cannot be."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefold.artifact import TensorSpec
from edgefold.device_bench import BenchOptions, bench, bench_many, compare, diagnose, sustained
from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import make_case, seeded_inputs, write_case
from edgefold.device_bench.launch import FakeLauncher, Launchers
from edgefold.device_bench.method import measure, placed
from edgefold.device_bench.parity import compare_outputs, is_right
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.errors import ArtifactError, RuntimeFailure, UsageError
from edgefold.results import Code, CoreInfo, DeviceInfo, Measurement, from_dict, to_dict

QUICK = BenchOptions(processes=2, min_samples=3, min_time_s=0.001, max_secs=10, gate_max_s=0)


def test_each_process_is_fresh_and_memory_is_a_pass_of_its_own(tiny: Path) -> None:
    device = FakeDevice()
    with FakeRunner(device) as runner:
        bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, BenchOptions(processes=3), Launchers(runner))
        assert device.pushed == {}
    assert device.jobs == [f"{mode} tiny.onnx" for mode in ("bench", "bench", "bench", "watch", "memory")]


class Working(FakeRunner):
    """A device whose clock is high while a process works that is not measured; it works until someone has looked."""

    busy, seen = False, threading.Event()

    def info(self) -> DeviceInfo:
        clock = 2_400_000 if self.busy else 600_000
        self.seen.set()
        return replace(QUIET_DEVICE, cores=(CoreInfo(0, "performance", 600_000, clock, 2_400_000),))

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        if not argv[-1].endswith("watch.json"):
            assert not self.busy
            return super().run(argv, timeout_s=timeout_s)
        self.busy = True
        self.seen.clear()
        assert self.seen.wait(10)
        done = super().run(argv, timeout_s=timeout_s)
        self.busy = False
        return done


def test_the_state_meanwhile_is_that_of_a_device_at_work(tiny: Path) -> None:
    told = FakeDevice(answer=lambda answer: {**answer, "affinity": [4, 5]})
    with Working(told) as runner:
        result = bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, QUICK, Launchers(runner))
    assert result.device_before is not None
    assert result.device_after is not None
    clocks = [state.cores[0].current_khz for state in (result.device_before, result.device, result.device_after)]
    assert clocks == [600_000, 2_400_000, 600_000]
    assert result.device.affinity == (4, 5)
    with Working(FakeDevice()) as runner:
        result = bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, QUICK, Launchers(runner))
    assert result.device.affinity is None
    curve = sustained(tiny / "tiny.onnx", minutes=0.0001, runner=Working(FakeDevice()))
    assert {point.frequency_khz for point in curve.points} == {2_400_000}


@pytest.mark.parametrize(("each_s", "processes"), [(3.0, 4), (10.0, 1), (2.1, 5), (1.0, 5)])
def test_the_time_bounds_all_processes_together(tiny: Path, each_s: float, processes: int) -> None:
    device = FakeDevice(latency_ns=lambda model, process: 8.2e6)
    options = BenchOptions(max_secs=10.0)
    with (
        FakeRunner(device) as runner,
        placed(make_case(tiny / "tiny.onnx", seed=0), runner, FakeLauncher(runner.python), options) as place,
    ):
        result = measure(place, clock=lambda: each_s * len(device.jobs))
    assert len(result.runs) == processes
    assert device.jobs.count("watch tiny.onnx") == 1
    assert (Code.FEW_SAMPLES in result.codes) == (processes < 5)


@pytest.mark.parametrize("cores", ["99", "0,7-8"])
def test_cores_that_the_device_lacks_are_named(tiny: Path, cores: str) -> None:
    lacking = cores.removeprefix("0,").replace("-", ", ")
    with FakeRunner() as runner, pytest.raises(UsageError, match=rf"cores '{lacking}' .* device 'fake' has cores 0, 1, 2, 3"):
        bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, replace(QUICK, cores=cores), Launchers(runner))


@pytest.mark.parametrize(
    "way",
    [
        lambda file, options: compare(file, file, "fake", options),
        lambda file, options: sustained(file, "fake", 0.001, options),
        lambda file, options: diagnose(file, "fake", options),
    ],
)
def test_every_way_of_measuring_refuses_cores_that_the_device_lacks(
    tiny: Path, way: Callable[[Path, BenchOptions], object]
) -> None:
    with pytest.raises(UsageError, match="cores '99' cannot be used: device 'fake'"):
        way(tiny / "tiny.onnx", replace(QUICK, cores="99"))


def test_what_was_pushed_is_removed_when_a_run_fails(tiny: Path) -> None:
    device = FakeDevice(answer=lambda answer: Completed(-11, b"", b""))
    with FakeRunner(device) as runner:
        with pytest.raises(RuntimeFailure, match=r"crashed on 'tiny.onnx' \(SIGSEGV\)"):
            bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, QUICK, Launchers(runner))
        assert device.pushed == {}


def test_ctrl_c_leaves_nothing(tiny: Path) -> None:
    def interrupt(answer: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    device = FakeDevice(answer=interrupt)
    with FakeRunner(device) as runner, pytest.raises(KeyboardInterrupt):
        bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, QUICK, Launchers(runner))
    assert device.pushed == {}


def test_the_host_measures_a_real_file(tiny: Path) -> None:
    result = bench(tiny / "tiny-int8.tflite", options=QUICK)
    assert result.runtime.startswith("ai-edge-litert")
    assert len(result.runs) == 2
    assert result.precision == "int8"
    assert result.peak_rss_bytes
    assert result.base_rss_bytes
    assert result.peak_rss_bytes > result.base_rss_bytes
    assert result.device.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert from_dict(Measurement, json.loads(json.dumps(to_dict(result)))) == result


def test_the_same_seed_gives_the_same_values_to_every_format(tiny: Path) -> None:
    nchw, nhwc = (make_case(tiny / name, seed=3).inputs[0] for name in ("tiny.onnx", "tiny.tflite"))
    np.testing.assert_array_equal(nchw, nhwc.transpose(0, 1, 4, 2, 3))
    assert not np.array_equal(nchw, make_case(tiny / "tiny.onnx", seed=4).inputs[0])


def test_seeded_inputs_of_every_kind() -> None:
    quantized = TensorSpec("c", (1, 2, 2, 3), "int8", "nhwc", 0.1, 0)
    real, ids, image = seeded_inputs([TensorSpec("a", (-1, 2), "float32"), TensorSpec("b", (3,), "int64"), quantized], 0)
    assert real.shape == (1, 2)
    assert real.dtype == np.float32
    assert set(ids.tolist()) <= {0, 1}
    assert image.shape == (1, 3, 2, 2)
    assert image.dtype == np.float32


def test_a_case_is_one_folder(tiny: Path, tmp_path: Path) -> None:
    write_case(make_case(tiny / "tiny.onnx", seed=0), tmp_path, BenchOptions(threads=2, cores="0,2-3", max_secs=50), {"x": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bench.json",
        "input_0.npy",
        "memory.json",
        "model.onnx",
        "profile.json",
        "watch.json",
    ]
    job = json.loads((tmp_path / "bench.json").read_text())
    assert (job["mode"], job["threads"], job["cores"], job["max_s"], job["x"]) == ("bench", 2, [0, 2, 3], 10.0, 1)


def test_several_artifacts_go_one_after_the_other(tiny: Path) -> None:
    results = bench_many([tiny / "tiny.onnx", tiny / "tiny.tflite"], "fake", BenchOptions(gate_max_s=0))
    assert [result.artifact for result in results] == ["tiny.onnx", "tiny.tflite"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"processes": -1}, "processes is -1"),
        ({"max_secs": 0}, "max_secs is 0"),
        ({"min_time_s": -1.0}, "min_time_s is -1.0"),
        ({"cores": "0,x"}, "cores '0,x' cannot be read; expected numbers and ranges like '0,2-3'"),
        ({"cores": "-1"}, "cores '-1' cannot be read"),
    ],
)
def test_options_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchOptions(**fields)


def test_unknown_devices_and_files(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown device 'hsot'; did you mean 'host'\?"):
        bench(tiny / "tiny.onnx", device="hsot")
    with pytest.raises(ArtifactError, match="does not exist"):
        bench(tiny / "none.onnx")


def test_parity_counts_steps_of_quantized_outputs(tiny: Path) -> None:
    spec = TensorSpec("y", (1, 4), "int8", scale=0.5, zero_point=0)
    reference = np.array([[0.0, 0.5, 1.0, 50.0]], np.float32)
    (found,) = compare_outputs([spec], [reference + np.array([[0, 0.5, 0, -1.0]], np.float32)], [reference])
    assert (found.max_steps, found.share_different) == (2.0, 0.5)
    with FakeRunner(FakeDevice()) as runner:
        result = bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, QUICK, Launchers(runner))
    assert result.max_steps is None
    assert replace(result, parity=(replace(found, max_steps=None), found, replace(found, max_steps=1.0))).max_steps == 2
    assert is_right(found, None)
    (bad,) = compare_outputs([spec], [reference * 0.9], [reference])
    assert not is_right(bad, None)
    assert compare_outputs([spec], [reference], [reference[:, :2]]) == ()
