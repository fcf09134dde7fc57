"""One numeric class a layer for all formats."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.errors import UsageError
from edgefold.export.lower.agree import agreed
from edgefold.export.plan import Candidate, LoweredLayer, Lowering, LoweringPlan, NumericClass
from edgefold.models.blocks import HetConv2d
from edgefold.pipeline import lower_model, quantize_model

FUSED, BRANCHED = NumericClass.FUSED, NumericClass.BRANCHED


def _plan(format: Format, dense_ns: float, grouped_ns: float) -> LoweringPlan:
    candidates = (
        Candidate(Lowering.DENSE, FUSED, 9, 9, dense_ns, "estimated"),
        Candidate(Lowering.GROUPED, BRANCHED, 3, 3, grouped_ns, "estimated"),
    )
    choice = Lowering.DENSE if dense_ns <= grouped_ns else Lowering.GROUPED
    return LoweringPlan(format, Precision.INT8, "host", (LoweredLayer("conv", candidates, choice, "cheapest"),), 0)


@pytest.mark.parametrize(
    ("onnx", "tflite", "expected"),
    [
        ((1.0, 2.0), (1.0, 2.0), Lowering.DENSE),  # they agree already
        ((2.0, 1.0), (2.0, 1.0), Lowering.GROUPED),
        ((1.0, 1.1), (3.0, 1.0), Lowering.GROUPED),  # onnx loses a tenth, tflite would lose two thirds
        ((1.0, 4.0), (1.2, 1.0), Lowering.DENSE),
    ],
)
def test_the_class_that_costs_all_formats_least(
    onnx: tuple[float, float], tflite: tuple[float, float], expected: Lowering
) -> None:
    found = agreed({Format.ONNX: _plan(Format.ONNX, *onnx), Format.TFLITE: _plan(Format.TFLITE, *tflite)})
    assert found == {Format.ONNX: {"conv": expected}, Format.TFLITE: {"conv": expected}}


def test_all_formats_get_one_class_a_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(HetConv2d(16, 32, 3, p=4, padding=1), nn.ReLU(), HetConv2d(32, 32, 3, p=4, padding=1)).eval()
    x = torch.randn(1, 16, 12, 12)
    program = quantize_model(net, x, calibration=[x], observer="minmax")
    classes = []
    for format in Format:
        lowered = lower_model(program, format=format, agree=True)
        assert lowered.plan.lowering == "by layer"
        classes.append([layer.chosen.numeric_class for layer in lowered.plan.layers])
    assert classes[0] == classes[1] == classes[2]
    with pytest.raises(UsageError, match="no integers that could agree"):
        lower_model(net, x, format="onnx", precision="fp32", agree=True)
