"""Times of ops with their modules, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.artifact import Format, Precision
from edgefold.device_bench.diagnosis import by_profile, cpu_features, diagnose, fallback, float_work, slow_cores
from edgefold.device_bench.opprofile import OpProfile, OpTime, module_of, profile
from edgefold.device_bench.runners.fake import QUIET_DEVICE
from edgefold.errors import UnsupportedError
from edgefold.results import CoreInfo


@pytest.mark.parametrize("name", ["tiny.onnx", pytest.param("tiny.pte", marks=pytest.mark.rig)])
def test_both_convolutions_are_seen_and_take_the_time(tiny: Path, name: str) -> None:
    found = profile(tiny / name)
    convs = [op for op in found.ops if op.op.startswith("Conv") or "Conv" in op.op]
    assert len(convs) == 2
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert found.slowest[0].ns == max(op.ns for op in found.ops)


def test_litert_says_so(tiny: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"LiteRT does not tell the times of ops, so 'tiny.tflite' cannot be profiled"):
        profile(tiny / "tiny.tflite")


def test_modules_stand_before_the_last_part_of_a_node() -> None:
    assert module_of("features.1.conv2/Conv_token_21") == "features.1.conv2"
    assert module_of("Transpose_token_106") == ""


def made(*ops: tuple[str, int]) -> OpProfile:
    total = sum(ns for _, ns in ops)
    rows = tuple(OpTime(f"{name}_{i}", name, "", ns, ns / total) for i, (name, ns) in enumerate(ops))
    return OpProfile("m.onnx", "0", Format.ONNX, "r", "host", rows)


def test_conversions_and_moves_are_causes_where_they_take_time() -> None:
    found = by_profile(made(("QLinearConv", 700), ("DequantizeLinear", 100), ("QuantizeLinear", 100), ("Transpose", 100)))
    assert [(cause.title, round(cause.share or 0, 2)) for cause in found] == [
        ("quantize and dequantize ops", 0.2),
        ("ops that only move data", 0.1),
    ]
    assert by_profile(made(("QLinearConv", 990), ("QuantizeLinear", 10))) == []
    assert by_profile(None) == []


def test_missing_instructions_are_a_cause_for_int8_only() -> None:
    old = replace(QUIET_DEVICE, cpu="4x Cortex-A72", features=("asimd",))
    (cause,) = cpu_features(Precision.INT8, old)
    assert "4x Cortex-A72 has neither dotprod (asimddp) and i8mm" in cause.detail
    assert cpu_features(Precision.FP32, old) == cpu_features(Precision.INT8, QUIET_DEVICE) == []
    x86 = replace(QUIET_DEVICE, machine="x86_64", features=("avx2",))
    assert "VNNI" in cpu_features(Precision.INT8, x86)[0].detail


def test_slow_cores_float_layers_and_fallbacks() -> None:
    cores = (CoreInfo(0, None, 1, 600_000, 1_800_000), CoreInfo(1, None, 1, 1_800_000, 1_800_000))
    assert slow_cores(replace(QUIET_DEVICE, cores=cores))[0].detail.startswith("core 0 at 600 of 1800 MHz:")
    assert slow_cores(QUIET_DEVICE) == []
    assert (
        "a, b, c and 1 more (25% of the multiply-accumulates)" in float_work(Precision.INT8, ["a", "b", "c", "d"], 0.75)[0].detail
    )
    assert float_work(Precision.FP32, ["a"], 0.0) == []
    assert "x (hardswish)" in fallback(["x (hardswish)"])[0].detail


def test_a_file_is_diagnosed(tiny: Path) -> None:
    report = diagnose(tiny / "tiny.onnx")
    assert 1 <= len(report.top) <= 5
    assert report.top[0].op == "Conv" or "Conv" in report.top[0].op
