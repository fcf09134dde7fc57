"""Times of ops with their modules, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.device_bench.diagnosis import by_profile, by_roofline, cpu_features, diagnose, fallback, float_work, slow_cores
from edgefold.device_bench.inspection import Work
from edgefold.device_bench.opprofile import OpProfile, OpTime, profile
from edgefold.device_bench.optrace import module_of, read_litert_trace, read_ort_trace, with_work
from edgefold.device_bench.roofline import Roofline
from edgefold.device_bench.runners.fake import QUIET_DEVICE
from edgefold.errors import RuntimeFailure
from edgefold.pipeline import export_model
from edgefold.results import CoreInfo


@pytest.mark.parametrize(
    "name", ["tiny.onnx", "tiny.tflite", "tiny-int8.tflite", pytest.param("tiny.pte", marks=pytest.mark.rig)]
)
def test_both_convolutions_are_seen_and_take_the_time(tiny: Path, name: str) -> None:
    found = profile(tiny / name)
    assert [op.macs for op in found.ops if op.macs][:1] == [9 * 3 * 8 * 16 * 16]
    assert all(op.moved_bytes > 0 for op in found.ops if op.macs)
    convs = [op for op in found.ops if op.op.startswith("Conv") or "Conv" in op.op]
    assert len(convs) == 2
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert found.slowest[0].ns == max(op.ns for op in found.ops)


@pytest.mark.parametrize("bits", [32, 8])
def test_onnx_ops_have_their_modules_and_work_whatever_the_layout_of_the_kernel(tmp_path: Path, bits: int) -> None:
    """8 channels are padded to 16 on some CPUs, packed weights are no inputs any more: neither may be seen."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.Flatten(), nn.Linear(24 * 36, 10)
    ).eval()
    images = torch.randn(4, 3, 8, 8)
    precision = f"{'fp' if bits == 32 else 'int'}{bits}"
    calibration = images if bits == 8 else None
    export_model(
        net, images[:1], format="onnx", precision=precision, calibration=calibration, timing=False, out=tmp_path / "n.onnx"
    )
    ops = {op.module: op for op in profile(tmp_path / "n.onnx").ops if op.macs}
    macs = {"0": 3 * 8 * 9 * 64, "2": 8 * 24 * 9 * 36, "4": 24 * 36 * 10}
    assert {name: op.macs for name, op in ops.items()} == macs
    weights = {"0": 3 * 8 * 9, "2": 8 * 24 * 9, "4": 24 * 36 * 10}
    assert all(ops[name].moved_bytes >= size * bits // 8 for name, size in weights.items())


def test_an_op_outside_of_the_delegate_is_found_by_its_position() -> None:
    rows = read_litert_trace(
        [
            {"name": "Convolution (NHWC, F32) IGEMM", "op": "Convolution (NHWC, F32) IGEMM", "position": -1, "ns": 5},
            {"name": "SOFTMAX", "op": "SOFTMAX", "position": 1, "ns": 2},
        ]
    )
    work = [Work("features", 100, 10, True), Work("head", 0, 4, False)]
    assert [(row.module, row.macs, row.moved_bytes) for row in with_work(rows, work)] == [("features", 100, 10), ("head", 0, 4)]
    # Two convolutions in the file and one in the trace: nobody knows which.
    assert [row.module for row in with_work(rows[:1], [*work, Work("more", 5, 5, True)])] == [""]


def test_a_kernel_without_a_name_is_not_called_invalid() -> None:
    (row,) = read_litert_trace([{"name": "Invalid Unary Op", "op": "Invalid Unary Op", "position": -1, "ns": 5}])
    assert row.op == "Unary Op"


def test_a_trace_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("[1]")
    with pytest.raises(RuntimeFailure, match="ONNX Runtime's trace cannot be read"):
        read_ort_trace(tmp_path / "trace")


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


def test_only_the_cores_that_work_are_slow_cores() -> None:
    cores = (CoreInfo(0, None, 1, 600_000, 1_800_000), CoreInfo(1, None, 1, 1_800_000, 1_800_000))
    device = replace(QUIET_DEVICE, cores=cores)
    assert slow_cores(device, threads=1) == []
    assert len(slow_cores(device, threads=2)) == len(slow_cores(device, threads=1, pinned=[0])) == 1
    assert slow_cores(device, threads=2, pinned=[1]) == []


# 10 operations in a ns, 1 byte in a ns: the ridge is at 10 operations a byte.
LIMITS = Roofline(10e9, 1e9, 1)


@pytest.mark.parametrize(
    ("macs", "moved", "ns", "memory_bound", "reached"),
    [
        (50_000, 1_000, 20_000, False, 0.5),  # 10 us of arithmetic, 1 us of data
        (1_000, 1_000, 2_000, True, 0.5),  # 0.2 us and 1 us
        (0, 1_000, 1_000, True, 1.0),
        (0, 0, 1_000, False, 0.0),  # nothing is known
    ],
)
def test_the_roofline_tells_which_limit_holds_an_op_back(
    macs: int, moved: int, ns: int, memory_bound: bool, reached: float
) -> None:
    op = OpTime("a", "Conv", "", ns, 1.0, macs, moved)
    assert LIMITS.memory_bound(op) is memory_bound
    assert LIMITS.reached(op) == pytest.approx(reached)


def test_layers_at_the_memorys_limit_and_layers_far_from_any_are_causes() -> None:
    ops = (
        OpTime("a", "Conv", "wide", 2_000, 0.4, 1_000, 1_000),
        OpTime("b", "Conv", "deep", 2_000, 0.4, 1_000, 100),
        OpTime("c", "Conv", "good", 1_000, 0.2, 5_000, 100),
    )
    profile = OpProfile("m.onnx", "0", Format.ONNX, "r", "host", ops)
    memory, far = by_roofline(profile, LIMITS)
    assert "use INT8 (a quarter of the bytes), or fewer and wider layers" in memory.detail
    assert "use fewer and wider layers" in by_roofline(profile, LIMITS, integer=True)[0].detail
    assert (memory.title, memory.share) == ("memory-bound layers", 0.4)
    assert "1 of them take 40% of the time (wide); fewer than 10.0 operations for each byte" in memory.detail
    assert (far.title, far.share) == ("layers far below what this device can do", 0.4)
    assert "(deep)" in far.detail


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny-int8.tflite"])
def test_a_file_is_diagnosed(tiny: Path, name: str) -> None:
    report = diagnose(tiny / name)
    assert 1 <= len(report.top) <= 5
    assert "Conv" in report.top[0].op
    assert report.roofline is not None
    # A core of any machine that runs this computes 0.1 to 1,000 Gop/s and copies 0.1 to 1,000 GB/s.
    assert 1e8 < report.roofline.operations_per_s < 1e12
    assert 1e8 < report.roofline.bytes_per_s < 1e12
