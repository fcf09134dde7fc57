"""Ops outside the delegate reach the measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.device_bench import benchmark
from edgefold.device_bench.benchmark import bench
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.inspection import fallback_ops, mac_modules
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


def test_files_without_module_names_give_none(tiny: Path) -> None:
    assert mac_modules(tiny / "tiny.pte") == mac_modules(tiny / "foreign.pte") == []
    assert replace(make_case(tiny / "tiny.onnx", seed=0)).fallback_ops == ()
