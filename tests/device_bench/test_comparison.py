"""Verdicts on devices whose truth is known."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest

from edgefold.artifact import Format
from edgefold.device_bench import comparison, stats
from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.comparison import compare, compare_cases, compare_measurements, verdict_of
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import open_runner
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.device_bench.stats import turn_medians, turns_ratio
from edgefold.errors import UsageError
from edgefold.results import Code, Comparison, Estimate, Measurement, Run, Verdict

OPTIONS = BenchOptions(processes=12, gate_max_s=0)


@pytest.fixture
def pair(tiny: Path, tmp_path: Path) -> tuple[Case, Case]:
    """The same model twice, as a.onnx and b.onnx."""
    return tuple(make_case(copy(tiny / "tiny.onnx", tmp_path / name), seed=0) for name in ("a.onnx", "b.onnx"))  # type: ignore[return-value]  # two of them


def device(ratio: float, seed: int) -> FakeDevice:
    return FakeDevice(latency_ns=lambda model, process: 1e6 * (ratio if model == "b.onnx" else 1.0), spread=0.02, seed=seed)


def verdict(pair: tuple[Case, Case], made: FakeDevice) -> Verdict:
    with FakeRunner(made) as runner:
        return compare_cases(*pair, runner, OPTIONS, Launchers(runner)).verdict


def test_a_against_a_shows_no_difference(pair: tuple[Case, Case]) -> None:
    assert [verdict(pair, device(1.0, seed)) for seed in range(8)].count(Verdict.NO_DIFFERENCE) >= 7


def test_three_percent_are_found_in_both_directions(pair: tuple[Case, Case]) -> None:
    assert [verdict(pair, device(1.03, seed)) for seed in range(4)] == [Verdict.SLOWER] * 4
    assert [verdict(pair, device(1 / 1.03, seed)) for seed in range(4)] == [Verdict.FASTER] * 4


def test_drift_does_not_make_a_verdict(pair: tuple[Case, Case]) -> None:
    # The device slows down by 1 % with each process: 27 % over the comparison.
    drifting = FakeDevice(spread=0.005)
    drifting.latency_ns = lambda model, process: 1e6 * 1.01 ** len(drifting.jobs)
    assert verdict(pair, drifting) is Verdict.NO_DIFFERENCE


def test_processes_are_interleaved_in_blocks(pair: tuple[Case, Case]) -> None:
    made = device(1.0, 0)
    verdict(pair, made)
    benches = [job[-6] for job in made.jobs if job.startswith("bench")]
    assert "".join(benches) == "abba" * 6


@pytest.fixture(scope="module")
def compared(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison on this machine in four processes, where one that shall mean something has twelve; b has an op that no
    delegate takes."""
    folder = tmp_path_factory.mktemp("compared")
    a, b = (make_case(copy(tiny / "tiny.onnx", folder / name), seed=0) for name in ("a.onnx", "b.onnx"))
    options = BenchOptions(processes=4, min_samples=3, min_time_s=0.0, max_secs=4, gate_max_s=0)
    with pytest.MonkeyPatch.context() as patch, open_runner("host") as runner:
        patch.setattr(comparison, "MIN_BLOCKS", 2)
        patch.setattr("edgefold.device_bench.benchmark.fallback_ops", lambda path: ("head (softmax)",) * (path.name == "b.onnx"))
        return compare_cases(a, b, runner, options, Launchers(runner))


def test_two_files_of_one_format_share_their_processes(compared: Comparison) -> None:
    found = compared
    assert len(found.block_ratios) == 4
    assert len(found.baseline.runs) == len(found.candidate.runs) == 4
    assert all(run.load_ns and len(run.samples_ns) >= 6 for run in (*found.baseline.runs, *found.candidate.runs))
    assert found.ratio.low <= found.ratio.value <= found.ratio.high


def test_a_disturbed_turn_and_a_drift_do_not_move_the_ratio_of_a_process() -> None:
    # Turns A B B A, B takes 1.03 times as long; the machine slows down by 2 % with each turn, and once by 50 %.
    speed = [1.02**turn for turn in range(20)]
    speed[6] *= 1.5
    a = np.array([1000 * speed[turn] for turn in range(20) if turn % 4 in (0, 3)])
    b = np.array([1030 * speed[turn] for turn in range(20) if turn % 4 in (1, 2)])
    assert turns_ratio(b, a) == pytest.approx(1.03)
    assert turn_medians([3, 1, 2, 10, 30], [3, 2]).tolist() == [2, 20]


def test_ops_that_no_delegate_takes_are_a_code_of_the_comparison(compared: Comparison) -> None:
    found = compared
    assert Code.FALLBACK_OPS not in found.baseline.codes
    assert found.candidate.fallback_ops == ("head (softmax)",)
    assert Code.FALLBACK_OPS in found.codes


def test_a_difference_below_the_threshold_is_none() -> None:
    assert verdict_of(Estimate(1.005, 1.002, 1.008), 0.01) is Verdict.NO_DIFFERENCE
    assert verdict_of(Estimate(1.005, 1.002, 1.008), 0.003) is Verdict.SLOWER
    assert verdict_of(Estimate(1.05, 0.99, 1.11), 0.01) is Verdict.NO_DIFFERENCE
    assert verdict_of(Estimate(1.05, 0.0, math.inf), 0.01) is Verdict.NO_DIFFERENCE


def test_a_verdict_needs_more_than_the_interval_that_is_shown() -> None:
    # 95 % leaves out 1, 99 % does not.
    assert verdict_of(Estimate(1.03, 1.005, 1.056), 0.01) is Verdict.NO_DIFFERENCE
    assert verdict_of(Estimate(1.03, 1.01, 1.05), 0.01) is Verdict.SLOWER
    assert verdict_of(Estimate(1 / 1.03, 1 / 1.056, 1 / 1.005), 0.01) is Verdict.NO_DIFFERENCE
    assert verdict_of(Estimate(1 / 1.03, 1 / 1.05, 1 / 1.01), 0.01) is Verdict.FASTER


def result(tiny: Path, latency_ns: float, seed: int = 0) -> Measurement:
    with FakeRunner(FakeDevice(latency_ns=lambda model, process: latency_ns, seed=seed)) as runner:
        return bench_case(make_case(tiny / "tiny.onnx", seed=0), runner, BenchOptions(gate_max_s=0), Launchers(runner))


def test_stored_results_compare_when_the_device_was_the_same(tiny: Path) -> None:
    found = compare_measurements(result(tiny, 1e6), result(tiny, 1.1e6, 1))
    assert found.verdict is Verdict.SLOWER
    assert found.ratio.low < 1.1 < found.ratio.high


def test_incomparable_results_are_refused_with_every_reason(tiny: Path) -> None:
    base = result(tiny, 1e6)
    device = replace(base.device, cpu="8x Cortex-A55")
    other = replace(base, threads=2, runtime="fake 2.0", codes=(Code.THROTTLED,), device=device)
    with pytest.raises(UsageError) as caught:
        compare_measurements(base, other)
    text = str(caught.value)
    assert "CPU 4x Cortex-A76 and 8x Cortex-A55" in text
    assert "runtime fake 1.0 and fake 2.0" in text
    assert "threads 1 and 2" in text
    assert "the new result is marked THROTTLED" in text


@pytest.mark.parametrize("code", [Code.UNSTABLE, Code.THROTTLED, Code.HOT, Code.EMULATED, Code.OUTPUT_MISMATCH])
def test_what_is_no_latency_to_trust_is_not_compared(tiny: Path, code: Code) -> None:
    base = replace(result(tiny, 1e6), codes=(code,))
    with pytest.raises(UsageError, match=f"the baseline is marked {code}.*; the new result is marked {code}"):
        compare_measurements(base, base)


@pytest.mark.parametrize("code", [Code.LOADED, Code.LOW_BATTERY, Code.GOVERNOR_NOT_PERFORMANCE])
def test_a_state_of_one_alone_is_a_reason_and_one_of_both_is_not(tiny: Path, code: Code) -> None:
    quiet = replace(result(tiny, 1e6), codes=())
    marked = replace(quiet, codes=(code,))
    with pytest.raises(UsageError, match=f"only the new result is marked {code}"):
        compare_measurements(quiet, marked)
    with pytest.raises(UsageError, match=f"only the baseline is marked {code}"):
        compare_measurements(marked, quiet)
    assert compare_measurements(marked, marked).codes == (code,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "Raspberry Pi 5"}, "model None and Raspberry Pi 5"),
        ({"soc": "SM8550"}, "SoC None and SM8550"),
        ({"features": ("asimd", "asimdhp")}, "CPU features: asimddp only there in one"),
    ],
)
def test_another_board_is_a_reason(tiny: Path, fields: dict[str, Any], words: str) -> None:
    base = result(tiny, 1e6)
    with pytest.raises(UsageError, match=words):
        compare_measurements(base, replace(base, device=replace(base.device, **fields)))


def test_few_processes_are_named_as_what_makes_a_figure_unstable(tiny: Path) -> None:
    base = result(tiny, 1e6)
    few = replace(base, runs=base.runs[:3], noise=1.0, codes=(Code.UNSTABLE,))
    with pytest.raises(UsageError, match=r"the new result is marked UNSTABLE \(3 processes, expected at least 4\)"):
        compare_measurements(base, few)
    loud = replace(base, noise=0.123, codes=(Code.UNSTABLE,))
    with pytest.raises(UsageError, match=r"UNSTABLE \(A/A noise 12\.3 %\)"):
        compare_measurements(base, loud)


def apart(rng: np.random.Generator, move: float, between: float) -> Measurement:
    """A measurement of five processes on a device that moves: its speed in this one, and in each process, is log-normal."""
    speed = rng.normal(0, move)
    runs = tuple(
        Run(tuple(int(x) for x in 1e6 * np.exp(speed + rng.normal(0, between) + rng.normal(0, 0.01, 80))), 1, 1, ())
        for _ in range(5)
    )
    samples = [run.samples_ns for run in runs]
    middle = stats.percentile(samples, 50)
    assert middle is not None
    interval, noise = (middle.low, middle.high), stats.aa_noise(samples)
    return Measurement(
        "a.onnx", "0" * 64, Format.ONNX, "fake 1.0", 1, runs, 1, QUIET_DEVICE, (), interval, noise, device_before=QUIET_DEVICE
    )


def test_measurements_apart_rarely_differ_where_the_device_moves_between_them() -> None:
    rng = np.random.default_rng(0)
    found = [apart(rng, 0.02, 0.02) for _ in range(24)]
    pairs = list(itertools.combinations(found, 2))
    plain = [verdict_of(stats.ratio(*([r.samples_ns for r in each.runs] for each in pair)), 0.03) for pair in pairs]
    now = [compare_measurements(*pair, threshold=0.03).verdict for pair in pairs]
    false = [sum(verdict is not Verdict.NO_DIFFERENCE for verdict in some) / len(pairs) for some in (plain, now)]
    assert false[0] > 0.05
    assert false[1] <= 0.05


def test_on_a_quiet_device_three_percent_are_found_apart_too() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        base, other = apart(rng, 0.001, 0.002), apart(rng, 0.001, 0.002)
        slower = tuple(replace(run, samples_ns=tuple(int(1.05 * x) for x in run.samples_ns)) for run in other.runs)
        assert compare_measurements(base, replace(other, runs=slower), threshold=0.03).verdict is Verdict.SLOWER


def test_side_by_side_nothing_is_said_of_an_emulators_times(pair: tuple[Case, Case]) -> None:
    made = device(1.5, 0)
    made.states = (replace(QUIET_DEVICE, emulated=True),)
    assert verdict(pair, made) is Verdict.CANNOT_TELL


def test_side_by_side_noise_hides_small_differences_only(pair: tuple[Case, Case]) -> None:
    def moving(ratio: float) -> FakeDevice:
        # Every process runs at one of two speeds, by chance.
        speeds = random.Random(1)
        return FakeDevice(
            latency_ns=lambda model, process: 1e6 * speeds.choice((1.0, 1.6)) * (ratio if model == "b.onnx" else 1), spread=0.02
        )

    assert verdict(pair, moving(1.0)) is Verdict.CANNOT_TELL
    assert verdict(pair, moving(3.0)) is Verdict.SLOWER


def test_by_name(tiny: Path) -> None:
    found = compare(tiny / "tiny.onnx", tiny / "tiny.tflite", "fake", OPTIONS)
    assert (found.baseline.artifact, found.candidate.artifact) == ("tiny.onnx", "tiny.tflite")
    assert len(found.block_ratios) == 6
