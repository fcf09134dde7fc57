"""Sums in ONNX files that agree with the other formats: XNNPACK's integers, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.passes.onnx_fixed_point_add import fixed_point_adds, multipliers
from edgefold.export.program import QuantizedProgram

IMAGES = torch.randn(32, 3, 48, 48, generator=torch.Generator().manual_seed(1))


class _Residual(nn.Module):
    """Two sums, the second of the first; both operands are rectified, so that no sum folds into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x)) + x
        return torch.relu(self.three(x)) + x


@pytest.fixture(scope="module")
def quantized() -> QuantizedProgram:
    torch.manual_seed(1)
    return edgefold.quantize_model(_Residual().eval(), IMAGES[:1], calibration=IMAGES[:8])


@pytest.mark.parametrize("agree", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_integers_of_executorch(agree: bool, quantized: QuantizedProgram, tmp_path: Path) -> None:
    files = {
        format: edgefold.export_model(quantized, format=format, agree=agree, timing=False, out=tmp_path / f"net{format.suffix}")
        for format in (Format.ONNX, Format.EXECUTORCH)
    }
    first, second = (edgefold.run(file, IMAGES.numpy())[0] for file in files.values())
    assert np.array_equal(first, second) is agree
    ops = [node.op_type for node in onnx.load(files[Format.ONNX].path).graph.node]
    assert ops.count("Floor") == (2 if agree else 0)


INTEGERS = np.arange(-128, 128, dtype=np.int8)


def _sum_with_a_constant(scale: np.float32, added: np.float32, result: np.float32) -> onnx.ModelProto:
    """All integers, on a grid, and one number, 100 on its own grid."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"], name="a"),
        helper.make_node("DequantizeLinear", ["constant", "added", "zero"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["sum"], name="sum"),
        helper.make_node("QuantizeLinear", ["sum", "result", "zero"], ["y"], name="y"),
        helper.make_node("Identity", ["y"], ["out"], name="out"),
    ]
    values = {"scale": scale, "added": added, "result": result, "zero": np.int8(0), "constant": np.int8(100)}
    constants = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    ends = [helper.make_tensor_value_info(name, types.INT8, [256]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "sum", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _integers_of(model: onnx.ModelProto) -> NDArray[np.int8]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.int8] = session.run(None, {"x": INTEGERS})[0]
    return found


def test_a_sum_with_a_constant_stays_one_and_gives_the_integers_of_xnnpack() -> None:
    rng, told_apart = np.random.default_rng(0), 0
    for _ in range(4000):
        scale, added, result = map(np.float32, (rng.uniform(0.01, 0.1), rng.uniform(0.005, 0.03), 0.05))
        one, two, shift = multipliers(scale, added, result)
        theirs = ((INTEGERS.astype(np.int64) * one + 100 * two + (1 << (shift - 1))) >> shift).clip(-128, 127)
        exact = (INTEGERS * float(scale) + 100 * float(added)) / float(result)
        if np.array_equal(np.rint(exact).clip(-128, 127), theirs):
            continue
        model = _sum_with_a_constant(scale, added, result)
        told_apart += not np.array_equal(_integers_of(model), theirs)
        changed, modified = fixed_point_adds(ir.serde.deserialize_model(model))
        assert modified
        assert "Floor" not in [node.op_type for node in changed.graph]
        np.testing.assert_array_equal(_integers_of(ir.serde.serialize_model(changed)), theirs)
    assert told_apart > 2


SCALES = st.floats(2.0**-12, 2.0**4, width=32)


@given(SCALES, SCALES, SCALES)
def test_multipliers_are_the_ratios_in_21_bits(first: float, second: float, result: float) -> None:
    one, two, shift = multipliers(np.float32(first), np.float32(second), np.float32(result))
    assert 2**20 <= max(one, two) <= 2**21
    for factor, scale in ((one, first), (two, second)):
        ratio = float(np.float32(scale) / np.float32(result))
        assert abs(factor * 2.0**-shift - ratio) <= 2.0 ** -(shift + 1)
