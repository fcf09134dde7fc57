"""Why INT8 does not pay: from the inspection and the profiles of two files."""

from __future__ import annotations

from edgefold.artifact import Format, Precision
from edgefold.device_bench.opprofile import OpProfile, OpTime
from edgefold.explaining import outlook, slow_ops
from edgefold.export.inspectors.base import Inspection
from edgefold.report.explanation import time_verdict


def _profile(*rows: tuple[str, str, int]) -> OpProfile:
    total = sum(ns for *_, ns in rows)
    ops = tuple(OpTime(f"{module}/{op}", op, module, ns, ns / total) for module, op, ns in rows)
    return OpProfile("net.onnx", "0" * 64, Format.ONNX, "onnxruntime", "host", ops)


def _inspection(**changes: object) -> Inspection:
    values = {
        "file": "net.onnx",
        "format": Format.ONNX,
        "precision": Precision.INT8,
        "size_bytes": 1,
        "nodes": 9,
        "convs": 3,
        "integer_ops": 5,
        "float_ops": 2,
        "conversions_inside": 0,
        "macs": 50_000_000,
        "integer_macs": 50_000_000,
        "partitions": None,
        "accelerated_ops": 0,
    }
    return Inspection(**{**values, **changes})  # type: ignore[arg-type]  # each has its own type


def test_modules_that_became_slower_and_conversions_are_slow_and_nothing_else() -> None:
    before = _profile(("a", "Conv", 1000), ("b", "HardSwish", 200), ("c", "Conv", 1000))
    after = _profile(("a", "QLinearConv", 400), ("b", "HardSwish", 900), ("c", "QLinearConv", 300), ("", "QuantizeLinear", 200))
    found = slow_ops(after, before)
    assert [(op.name, op.ns, op.float_ns) for op in found] == [("b", 900, 200), ("QuantizeLinear", 200, None)]
    assert "slower than the float one" in found[0].why
    assert "converts" in found[1].why


def test_the_reasons_name_what_was_found() -> None:
    inspection = _inspection(integer_macs=30_000_000, conversions_inside=4, float_mac_modules=("head",), partitions=2)
    told = outlook(Format.ONNX, inspection, 1000.0, 1500.0)
    assert time_verdict(told) == "INT8 does not pay, with 1.50 times the time of float"
    assert any("only 60%" in reason and "head" in reason for reason in told.reasons)
    assert any(reason.startswith("4 conversions") for reason in told.reasons)
    assert "pays" in time_verdict(outlook(Format.ONNX, _inspection(), 1000.0, 500.0))
    assert outlook(Format.ONNX, _inspection(), 1000.0, 500.0).reasons == ()
    assert time_verdict(outlook(Format.ONNX, _inspection(), None, 500.0)) == "not measured"


def test_a_small_network_is_said_to_be_small() -> None:
    told = outlook(Format.ONNX, _inspection(macs=900_000, integer_macs=900_000), 1.0, 1.0)
    assert any("0.9 million" in reason for reason in told.reasons)
