"""Slow INT8 kernels by the module that they come from: in LiteRT's profile, in a file, and in what is said of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgefold.artifact import Artifact, Format, Precision
from edgefold.device_bench.inspection import Work
from edgefold.device_bench.optrace import Row, with_work
from edgefold.device_bench.outlook import int8_outlook
from edgefold.explaining import outlook
from edgefold.export.inspectors.base import Kind, Op, Reading, summarize

OPS = (
    Op("QUANTIZE", Kind.CONVERSION, "input", at_end=True),
    Op("CONV_2D", Kind.INTEGER, "stem", macs=100, is_conv=True),
    Op("DEQUANTIZE", Kind.CONVERSION, "norm"),
    Op("SQUARED_DIFFERENCE", Kind.FLOAT, "norm"),
    Op("RSQRT", Kind.FLOAT, "norm"),
    Op("RESIZE_BILINEAR", Kind.INTEGER, "up"),
)


def _rows(*resized: str) -> list[Row]:
    names = ("Convert (NC)", "Convolution (NHWC, QC8) IGEMM", "Convert (NC)", "Squared Difference (ND)", *resized)
    return [Row(name, name, 1000.0) for name in names]


def test_kernels_of_a_delegate_get_their_modules() -> None:
    work = [Work(op.module, op.macs, op.moved_bytes, op.accelerated, op.name) for op in OPS]
    modules = [row.module for row in with_work(_rows("Resize Bilinear (NHWC)"), work)]
    assert modules == ["", "stem", "", "norm", "up"]
    # One more kernel than ops: which is which is not known.
    twice = with_work(_rows("Resize Bilinear (NHWC)", "Resize Bilinear (NHWC)"), work)
    assert [row.module for row in twice] == ["", "stem", "", "norm", "", ""]


def test_float_ops_and_conversions_are_named_by_module() -> None:
    found = summarize("net.tflite", Format.TFLITE, Precision.INT8, 1, Reading(OPS, 1))
    assert found.float_modules == ("norm (SQUARED_DIFFERENCE, RSQRT)",)
    assert found.conversion_modules == ("norm (DEQUANTIZE)",)
    reasons = outlook(Format.TFLITE, found, 1.0, 2.0).reasons
    assert "computed in float: norm (SQUARED_DIFFERENCE, RSQRT)" in reasons
    exact = Reading(tuple(op for op in OPS if op.kind is Kind.FLOAT), 1)
    assert summarize("net.tflite", Format.TFLITE, Precision.FP32, 1, exact).float_modules == ()


def test_tflite_files_are_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import edgefold.explaining as explaining
    from edgefold.device_bench import BenchOptions

    asked = []

    def profile(artifact: Artifact, device: str, options: Any) -> Any:
        asked.append((artifact.format, device))
        return None

    monkeypatch.setattr("edgefold.device_bench.profile", profile)
    artifact = Artifact(Path("net.tflite"), Format.TFLITE, Precision.INT8, "", (), ())
    explaining._profiled(artifact, "host", BenchOptions())
    assert asked == [(Format.TFLITE, "host")]


@pytest.mark.parametrize("features", [{"avx2", "avx512_vnni"}, {"avx2"}])
def test_weights_alone_use_no_8_bit_instruction(features: set[str]) -> None:
    pays, reason = int8_outlook("x86_64", frozenset(features), integer=False)
    assert not pays
    assert "widened to float" in reason
    assert int8_outlook("x86_64", frozenset(features))[0] == ("avx512_vnni" in features)
