"""Every op that is read, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from edgefold.models.from_onnx.read import MAX_OPSET
from edgefold.models.from_onnx.table import HANDLERS
from tests.models.onnx_files import Array, Weight, assert_agrees, model_of, op_model

RNG = np.random.default_rng(0)
IMAGE = (1, 4, 7, 6)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def op(kind: str, *weights: Weight, shape: tuple[int, ...] = IMAGE, opset: int = 18, **attributes: Any) -> Any:
    name = "-".join([kind, *(f"{key}={value}" for key, value in attributes.items()), *([] if opset == 18 else [str(opset)])])
    return pytest.param(op_model(kind, shape, *weights, opset=opset, **attributes), id=name)


UNARY = (
    "Abs", "Ceil", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "Mish", "Neg",
    "Reciprocal", "Relu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh", "GlobalAveragePool", "GlobalMaxPool", "Transpose",
    "Flatten", "Squeeze", "Dropout",
)  # fmt: skip
REDUCTIONS = ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
SCALES = np.array([1, 1, 2, 2], np.float32)

CASES = [
    *(op(kind) for kind in UNARY),
    op("Gelu", opset=20),
    op("Gelu", opset=20, approximate="tanh"),
    op("HardSigmoid", alpha=1 / 6, beta=0.5),
    op("LeakyRelu", alpha=0.3),
    op("Elu", alpha=0.5),
    op("Softmax", axis=1),
    op("Softmax", opset=MAX_OPSET),
    op("Reshape", ints(1, -1), opset=MAX_OPSET),
    op("Softmax", opset=11, axis=1),
    op("Softmax", opset=11, axis=3),
    op("LogSoftmax", opset=9, axis=2),
    op("Flatten", axis=2),
    op("Flatten", axis=-1),
    # layers
    op("Conv", floats(8, 2, 3, 3), floats(8), group=2, strides=[2, 1], dilations=[1, 2], pads=[1, 0, 1, 2]),
    op("Conv", floats(8, 4, 3), floats(8), shape=(2, 4, 9), pads=[2, 1]),
    op("Conv", floats(4, 1, 3, 3), group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
    op("Conv", floats(4, 4, 2, 2), auto_pad="SAME_LOWER"),
    op("Conv", floats(4, 4, 2, 2), auto_pad="VALID"),
    op("ConvTranspose", floats(4, 3, 3, 3), floats(3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    op("ConvTranspose", floats(4, 3, 3, 3), None, strides=[2, 1], pads=[0, 1, 1, 0], group=2),
    op("ConvTranspose", floats(4, 2, 4), None, shape=(1, 4, 6), strides=[2], pads=[1, 1]),
    op("Gemm", floats(6, 5), floats(5), shape=(3, 6)),
    op("Gemm", floats(5, 6), floats(5), shape=(3, 6), transB=1, alpha=0.5, beta=2.0),
    op("Gemm", floats(6, 5), floats(3, 1), shape=(6, 3), transA=1),
    op("Gemm", floats(6, 5), None, shape=(3, 6)),
    op("MatMul", floats(6, 5), shape=(2, 3, 6)),
    op("MatMul", floats(2, 6, 5), shape=(2, 3, 6)),
    op("BatchNormalization", floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5, epsilon=1e-3),
    op("BatchNormalization", floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5, shape=(2, 4)),
    op("BatchNormalization", floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5, shape=(2, 4, 5), opset=9),
    op("InstanceNormalization", floats(4), floats(4)),
    op("LayerNormalization", floats(6), floats(6)),
    op("LayerNormalization", floats(4, 7, 6), axis=1),
    op("PRelu", floats(4, 1, 1)),
    op("PRelu", floats(1)),
    op("PRelu", floats(7, 6)),
    # arithmetic
    *(op(kind, floats(4, 1, 1)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(op(kind, np.float32(1.5)) for kind in ("Add", "Sub", "Mul", "Div")),
    op("Max", floats(6), floats(7, 1)),
    op("Mean", floats(6), floats(7, 1)),
    op("Pow", np.float32(2)),
    op("Pow", ints(3)),
    op("Mod", np.abs(floats(6)) + 0.5, fmod=1),
    op("Clip", np.float32(0), np.float32(6)),
    op("Clip", np.float32(-0.5), np.float32(0.5)),
    op("Clip", None, np.float32(0.5)),
    op("Clip", np.float32(0)),
    op("Clip", opset=9, min=-0.25, max=0.25),
    # reductions
    *(op(f"Reduce{kind}", opset=13 if kind != "Sum" else 11, axes=[1, 2], keepdims=0) for kind in REDUCTIONS),
    *(op(f"Reduce{kind}", ints(-1, 2)) for kind in REDUCTIONS),
    op("ReduceMean"),
    op("ReduceSum", noop_with_empty_axes=1),
    op("ArgMax", axis=1),
    op("ArgMin", axis=-1, keepdims=0),
    # shapes
    op("Reshape", ints(0, -1, 3)),
    op("Reshape", ints(1, 168)),
    op("Squeeze", ints(0)),
    op("Squeeze", opset=11, axes=[0]),
    op("Unsqueeze", ints(0, -1)),
    op("Unsqueeze", opset=11, axes=[2]),
    op("Transpose", perm=[0, 2, 3, 1]),
    op("Concat", floats(1, 2, 7, 6), axis=1),
    op("Slice", ints(1, -3), ints(5, 2**62), ints(2, 3)),
    op("Slice", ints(-1), ints(-(2**62)), ints(2), ints(-2)),
    op("Slice", ints(0), ints(7), ints(2), ints(3)),
    op("Slice", opset=9, starts=[1], ends=[3], axes=[1]),
    op("Gather", ints(2), axis=1),
    op("Gather", np.int64(-1), axis=1),
    op("Gather", np.array([[0, 3], [1, 1]]), axis=1),
    op("Expand", ints(3, 1, 1, 1)),
    op("Tile", ints(1, 2, 1, 3)),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(1.5)),
    op("Pad", ints(0, 0, -1, 1, 0, 0, 0, 0)),
    op("Pad", ints(1, 0, 0, 2), None, ints(2, 3), mode="reflect"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), mode="edge"),
    op("Pad", opset=9, pads=[0, 1, 1, 2, 0, 0, 0, 1], value=0.5),
    op("DepthToSpace", blocksize=2),
    op("DepthToSpace", blocksize=2, mode="CRD"),
    op("SpaceToDepth", blocksize=2, shape=(1, 3, 8, 6)),
    op("Shape"),
    op("Shape", start=1, end=-1),
    op("Size"),
    # resizing
    op("Resize", None, SCALES),
    op("Resize", None, np.array([1, 1, 1.5, 0.7], np.float32), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    op("Resize", None, None, ints(1, 4, 14, 18), mode="linear"),
    op("Resize", None, None, ints(1, 4, 10, 9), mode="linear"),
    op("Resize", None, None, ints(1, 4, 10, 9), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    op("Resize", None, None, ints(1, 4, 10, 9), mode="linear", coordinate_transformation_mode="align_corners"),
    op("Resize", None, None, ints(10, 9), axes=[2, 3], nearest_mode="ceil"),
    op("Resize", None, np.array([1, 1, 2], np.float32), mode="linear", shape=(1, 4, 6)),
    op("Resize", SCALES, opset=10),
    op("Upsample", SCALES, opset=9),
]  # fmt: skip


@pytest.mark.parametrize("model", CASES)
def test_an_op(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert_agrees(model, tmp_path)


def test_square_roots_and_logarithms(tmp_path: Path) -> None:
    for kind in ("Sqrt", "Log"):
        assert_agrees(op_model(kind, (2, 3)), tmp_path, torch.rand(2, 3) + 0.1)
    assert_agrees(op_model("Pow", (2, 3), np.array(0.5, np.float32)), tmp_path, torch.rand(2, 3) + 0.1)


@pytest.mark.parametrize("kind", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_choose(kind: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(kind, ["x", "limit"], ["found"]),
        helper.make_node("Not", ["found"], ["other"]),
        helper.make_node("And", ["found", "other"], ["never"]),
        helper.make_node("Or", ["found", "never"], ["mask"]),
        helper.make_node("Where", ["mask", "x", "limit"], ["y"]),
    ]
    x = torch.tensor([[0.5, -1.0, 0.25, 2.0]])
    assert_agrees(model_of(nodes, {"x": (1, 4)}, {"limit": np.array(0.25, np.float32)}), tmp_path, x)


@pytest.mark.parametrize(("opset", "lengths"), [(11, [1, 3]), (18, [1, 3]), (18, None)])
def test_split(opset: int, lengths: list[int] | None, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"split": lengths} if opset == 11 else {} if lengths else {"num_outputs": 2}
    weights = [np.array(lengths)] if lengths and opset == 18 else []
    assert_agrees(op_model("Split", IMAGE, *weights, opset=opset, outputs=("a", "b"), axis=1, **attributes), tmp_path)


def test_chains_of_shapes_become_constants(tmp_path: Path) -> None:
    """What exporters write for ``x.view(x.size(0), -1)`` and its kin."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batches"]),
        helper.make_node("Cast", ["half"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Mul", ["whole", "minus"], ["rest"]),
        helper.make_node("Range", ["low", "high", "step"], ["range"]),
        helper.make_node("ReduceSum", ["range"], ["total"], keepdims=1),
        helper.make_node("Div", ["total", "total"], ["one"]),
        helper.make_node("ConstantOfShape", ["one"], ["ones"], value=helper.make_tensor("v", onnx.TensorProto.INT64, [1], [1])),
        helper.make_node("Concat", ["batches", "rest", "ones"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    weights = {
        "first": ints(0),
        "half": np.array([1.0], np.float32),
        "minus": ints(-1),
        **{name: np.array(value) for name, value in (("low", 0), ("high", 4), ("step", 3))},
    }
    assert_agrees(model_of(nodes, {"x": ("batch", 4, 7)}, weights), tmp_path)


def test_a_constant_after_a_layer_is_its_bias(tmp_path: Path) -> None:
    """Files of Keras keep biases apart."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "m"], ["f"], name="head"),
        helper.make_node("Add", ["n", "f"], ["y"]),
    ]
    weights = {"w": floats(8, 4, 3, 3), "b": floats(8, 1, 1), "m": floats(8, 3), "n": floats(3)}
    model = model_of(nodes, {"x": IMAGE}, weights)
    assert_agrees(model, tmp_path)
    from edgefold.models.from_onnx.source import from_onnx

    module = from_onnx(tmp_path / "model.onnx").module
    assert isinstance(module, torch.fx.GraphModule)
    assert [node.op for node in module.graph.nodes].count("call_function") == 2  # the mean, the reshape
    assert dict(module.named_parameters()).keys() == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pools_of_any_geometry(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    rank = data.draw(st.sampled_from([1, 2]))
    kernel = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    pads = [data.draw(st.integers(0, kernel[place % rank] - 1)) for place in range(2 * rank)]
    size = data.draw(st.lists(st.integers(4, 9), min_size=rank, max_size=rank))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "ceil_mode": data.draw(st.integers(0, 1))}
    if data.draw(st.booleans()):
        attributes["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        attributes["ceil_mode"] = 0
        assume(all(k >= s for k, s in zip(kernel, strides, strict=True)))  # else ONNX Runtime pads by less than nothing and stops
    else:
        attributes["pads"] = pads
    if kind == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
    elif attributes.get("auto_pad", "VALID") == "VALID" and data.draw(st.booleans()):  # else ONNX Runtime breaks its own shape
        attributes["dilations"] = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
        assume(all(d * (k - 1) < n for d, k, n in zip(attributes["dilations"], kernel, size, strict=True)))
    with TemporaryDirectory() as folder:
        assert_agrees(op_model(kind, (1, 2, *size), opset=19, **attributes), Path(folder))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions_of_any_geometry(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    numbers = st.integers(1, 3)
    kernel = data.draw(st.lists(numbers, min_size=rank, max_size=rank))
    attributes: dict[str, Any] = {"group": groups, "strides": data.draw(st.lists(numbers, min_size=rank, max_size=rank))}
    if data.draw(st.booleans()):
        attributes["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    else:
        attributes["pads"] = data.draw(st.lists(st.integers(0, 3), min_size=2 * rank, max_size=2 * rank))
        attributes["dilations"] = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    bias = floats(8) if data.draw(st.booleans()) else None
    size = data.draw(st.lists(st.integers(6, 9), min_size=rank, max_size=rank))
    model = op_model("Conv", (1, 4, *size), floats(8, 4 // groups, *kernel), bias, **attributes)
    with TemporaryDirectory() as folder:
        assert_agrees(model, Path(folder))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    old=st.integers(1, 6),
    new=st.integers(1, 13),
    how=st.sampled_from(["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"]),
    rounding=st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
)
def test_nearest_places_of_any_rule(old: int, new: int, how: str, rounding: str) -> None:
    at = np.arange(new) * old / new if how == "asymmetric" else (np.arange(new) + 0.5) * old / new - 0.5
    at = np.arange(new) * (old - 1) / max(new - 1, 1) if how == "align_corners" else at
    between = at - np.floor(at) if rounding in ("floor", "ceil") else np.abs(at - np.floor(at) - 0.5)
    # Where a place lies exactly between two, the rounding of float32 decides, not the rule.
    assume(old == new or np.minimum(between, 1 - between).min() > 1e-3 or (how == "asymmetric" and new % old == 0))
    attributes: dict[str, Any] = {"coordinate_transformation_mode": how, "nearest_mode": rounding}
    with TemporaryDirectory() as folder:
        assert_agrees(op_model("Resize", (1, 1, old, 3), None, None, ints(1, 1, new, 3), **attributes), Path(folder))


def test_each_op_that_is_read_has_a_test_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in HANDLERS if f'"{kind}"' not in text and not kind.startswith("Reduce")] == []
