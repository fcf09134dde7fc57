"""Ops outside the delegate reach the measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefold.device_bench import benchmark
from edgefold.device_bench.benchmark import bench
from edgefold.device_bench.inspection import Work, fallback_ops, work_of
from edgefold.device_bench.options import BenchOptions
from edgefold.results import Code

QUICK = BenchOptions(processes=1, min_samples=3, min_time_s=0.0, max_secs=10, gate_max_s=0)


def test_fully_delegated_files_have_none(tiny: Path) -> None:
    assert fallback_ops(tiny / "tiny.onnx") == fallback_ops(tiny / "tiny.tflite") == ()
    assert Code.FALLBACK_OPS not in bench(tiny / "tiny.tflite", options=QUICK).codes


def test_what_the_inspection_finds_is_in_the_measurement(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "fallback_ops", lambda path: ("head (SOFTMAX)",))
    result = bench(tiny / "tiny.tflite", options=QUICK)
    assert Code.FALLBACK_OPS in result.codes
    assert result.fallback_ops == ("head (SOFTMAX)",)


def test_the_work_of_every_op(tiny: Path) -> None:
    # 3x3 convolutions 3 -> 8 -> 4 channels on 16x16 pixels in float32, with biases or without.
    pixels = 16 * 16
    macs = [9 * 3 * 8 * pixels, 9 * 8 * 4 * pixels]
    floats = [(3 + 8) * pixels + 9 * 3 * 8, (8 + 4) * pixels + 9 * 8 * 4]
    for name in ("tiny.tflite", "tiny.pte"):
        work = [each for each in work_of(tiny / name) if each.macs]
        assert [each.macs for each in work] == macs
        for each, least in zip(work, floats, strict=True):
            assert 4 * least <= each.moved_bytes <= 4 * (least + 8)
    assert all(isinstance(each, Work) and each.delegated for each in work_of(tiny / "foreign.pte"))
    assert {each.module for each in work_of(tiny / "foreign.pte")} == {""}
