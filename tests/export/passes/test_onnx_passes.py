"""Each ONNX pass on a model written by hand: what it changes, and that ONNX Runtime computes the same integers as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefold.artifact import Precision
from edgefold.errors import RuntimeFailure
from edgefold.export.passes.infra import GraphPass, run_passes
from edgefold.export.passes.onnx_bias import INTEGER_BIAS
from edgefold.export.passes.onnx_clip import INTEGER_CLIP
from edgefold.export.passes.onnx_constant_casts import CONSTANT_CASTS
from edgefold.export.passes.onnx_global_pool import GLOBAL_POOL
from edgefold.export.passes.onnx_half_weights import HALF_WEIGHTS
from edgefold.export.passes.onnx_names import NAME_BY_MODULE
from edgefold.export.passes.onnx_pads import CONVOLUTION_PADS
from edgefold.export.passes.onnx_pipeline import pipeline
from edgefold.export.passes.onnx_qdq import constant, producer
from edgefold.export.passes.onnx_unsigned import UNSIGNED, UNSIGNED_ACTIVATIONS, can_saturate

Array = NDArray[Any]
STEP_IN, STEP_OUT = 0.02, 0.5


def make(nodes: list[onnx.NodeProto], constants: dict[str, Array], x: tuple[int, ...], y: tuple[int, ...]) -> ir.Model:
    """A model from float ``x`` to float ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def quantized_conv(group: int, clip: tuple[float, float] | None = None, out_zero: int = 0, seed: int = 0) -> ir.Model:
    """A 3x3 conv of 8 channels with int8 activations and weights, large enough for 16-bit sums to saturate."""
    generator = np.random.default_rng(seed)
    weight = np.where(generator.random((8, 8 // group, 3, 3)) < 0.8, 127, -127).astype(np.int8)
    constants: dict[str, Array] = {
        "sx": np.array(STEP_IN, np.float32),
        "zx": np.array(-128, np.int8),
        "w": weight,
        "sw": np.linspace(0.01, 0.02, 8, dtype=np.float32),
        "zw": np.zeros(8, np.int8),
        "b": generator.normal(size=8).astype(np.float32),
        "sy": np.array(STEP_OUT if group == 1 else STEP_OUT / 8, np.float32),
        "zy": np.array(out_zero, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"], group=group, pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("QuantizeLinear", ["c", "sy", "zy"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    if clip is not None:
        constants |= {"low": np.array(clip[0], np.float32), "high": np.array(clip[1], np.float32)}
        nodes[4] = helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["yq"])
        nodes.insert(4, helper.make_node("Clip", ["c", "low", "high"], ["r"]))
    return make(nodes, constants, (1, 8, 9, 9), (1, 8, 9, 9))


def run(model: ir.Model, x: Array, *, optimize: bool = True, exact: bool = False) -> tuple[Array, list[str]]:
    """The output and the kinds of nodes that ran; without optimization every node computes by itself, in float.

    ``exact`` is ONNX Runtime's own remedy for sums that saturate.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x})[0]
    return result, kinds(model)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def image() -> Array:
    return np.random.default_rng(4).uniform(2, 5.1, (1, 8, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_integer_kernels_equal_the_float_graph_even_at_full_range(group: int) -> None:
    """uint8 activations with int8 weights would be off by up to half of the range here on CPUs without VNNI."""
    model = quantized_conv(group, out_zero=-128)
    expected, _ = run(model, image(), optimize=False)
    model, modified = run_passes(model, (INTEGER_BIAS, UNSIGNED))
    assert modified
    found, _ = run(model, image())
    step = STEP_OUT if group == 1 else STEP_OUT / 8
    difference = np.abs(found - expected) / step
    # An integer bias rounds once more, which moves a few values by one step.
    assert difference.max() < 1.01
    assert (difference > 0.5).mean() < 0.01


@pytest.mark.parametrize("group", [1, 4, 8])
def test_int8_weights_of_full_range_are_exact_where_the_runtime_is_told(group: int) -> None:
    model = quantized_conv(group, out_zero=-128)
    expected, _ = run(model, image(), optimize=False)
    model, _ = run_passes(model, (INTEGER_BIAS, UNSIGNED_ACTIVATIONS))
    assert can_saturate(model) == (group < 8)
    found, _ = run(model, image(), exact=True)
    difference = np.abs(found - expected) / (STEP_OUT if group == 1 else STEP_OUT / 8)
    assert difference.max() < 1.01
    assert (difference > 0.5).mean() < 0.01


def test_weights_become_uint8_but_for_depthwise_ones() -> None:
    for group, expected in ((1, np.uint8), (4, np.uint8), (8, np.int8)):
        model, _ = run_passes(quantized_conv(group), (UNSIGNED,))
        arrays = {name: constant(value) for name, value in model.graph.initializers.items()}
        weights = [array for array in arrays.values() if array is not None and array.ndim == 4]
        assert expected in {weight.dtype.type for weight in weights}
        zero_points = [constant(node.inputs[2]) for node in model.graph if node.op_type == "QuantizeLinear"]
        assert {zero.dtype for zero in zero_points if zero is not None} == {np.dtype(np.uint8)}


def test_zero_points_that_are_cast_are_constants() -> None:
    """As the exporter leaves them for a layer of very many outputs."""
    model = quantized_conv(1)
    zeros = next(value for name, value in model.graph.initializers.items() if name == "zw")
    wide = ir.Value(name="zw64", const_value=ir.tensor(np.zeros(8, np.int64), name="zw64"))
    model.graph.register_initializer(wide)
    cast = ir.node("Cast", [wide], {"to": int(ir.DataType.INT8)})
    model.graph.insert_before(next(iter(model.graph)), cast)
    ir.convenience.replace_all_uses_with(zeros, cast.outputs[0])
    run_passes(model, (CONSTANT_CASTS, INTEGER_BIAS))  # whose condition fails on a bias that is left in float
    assert not any(node.op_type == "Cast" for node in model.graph)


def test_bias_becomes_int32_on_the_scale_of_the_accumulator() -> None:
    model = quantized_conv(1)
    bias = constant(model.graph.initializers["b"])
    model, _ = run_passes(model, (INTEGER_BIAS,))
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    source = producer(conv.inputs[2], "DequantizeLinear")
    assert source is not None
    integers, scale = (constant(source.inputs[index]) for index in (0, 1))
    assert bias is not None
    assert scale is not None
    assert integers is not None
    assert integers.dtype == np.int32
    np.testing.assert_allclose(scale, np.float32(STEP_IN) * np.linspace(0.01, 0.02, 8, dtype=np.float32), rtol=1e-6)
    np.testing.assert_array_equal(integers, np.rint(bias.astype(np.float64) / scale))


def test_clip_that_the_range_implies_goes() -> None:
    # Zero point at the lower end and 255 steps of 0.5: nothing below 0 or above 127.5 can be told apart.
    model, modified = run_passes(quantized_conv(1, clip=(0.0, 127.5), out_zero=-128), (INTEGER_CLIP,))
    assert modified
    assert "Clip" not in kinds(model)


@pytest.mark.parametrize("bounds", [(-5.0, 7.0), (0.0, 6.1), (-3.3, 40.0)])
def test_clip_moves_behind_the_quantization_bit_for_bit(bounds: tuple[float, float]) -> None:
    model = quantized_conv(8, clip=bounds)
    x = np.random.default_rng(2).uniform(-3, 5, (1, 8, 9, 9)).astype(np.float32)
    expected, before = run(model, x, optimize=False)
    assert before.index("Clip") < before.index("QuantizeLinear", 1)
    model, _ = run_passes(model, (INTEGER_CLIP,))
    found, after = run(model, x, optimize=False)
    assert after.index("Clip") > after.index("QuantizeLinear", 1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("exact_products", [False, True])
def test_the_bounds_of_a_clip_have_the_type_of_its_input_in_the_end(exact_products: bool) -> None:
    """As behind a ReLU whose result shares its scale with negative values, in a concat."""
    model = quantized_conv(8, clip=(0.0, 6.1))
    x = np.random.default_rng(2).uniform(-3, 5, (1, 8, 9, 9)).astype(np.float32)
    expected, _ = run(model, x, optimize=False)
    model, _ = run_passes(model, pipeline(Precision.INT8, exact_products=exact_products))
    found, after = run(model, x, optimize=False)
    assert after.index("Clip") > after.index("QuantizeLinear", 1)
    np.testing.assert_array_equal(found, expected)


def test_spatial_mean_becomes_global_pool() -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)]
    model = make(nodes, {"axes": np.array([-1, -2])}, (1, 3, 4, 5), (1, 3, 1, 1))
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    model, modified = run_passes(model, (GLOBAL_POOL,))
    found, after = run(model, x)
    assert (modified, after) == (True, ["GlobalAveragePool"])
    np.testing.assert_allclose(found, x.astype(np.float64).mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("axes", "keep"), [([1, 2], 1), ([2], 1), ([2, 3], 0)])
def test_other_means_stay(axes: list[int], keep: int) -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)]
    shape = np.empty((1, 3, 4, 5)).mean(tuple(axes), keepdims=bool(keep)).shape
    model, modified = run_passes(make(nodes, {"axes": np.array(axes)}, (1, 3, 4, 5), shape), (GLOBAL_POOL,))
    assert (modified, kinds(model)) == (False, ["ReduceMean"])


def test_half_weights_only_where_they_pay_and_fit() -> None:
    constants: dict[str, Array] = {
        "large": np.full((16, 16), 1.25, np.float32),
        "huge": np.full((16, 16), 1e6, np.float32),
        "small": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("MatMul", ["a", "huge"], ["y"]),
    ]
    model, _ = run_passes(make(nodes, constants, (1, 16), (1, 16)), (HALF_WEIGHTS,))
    types = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert types == {"large_f16": ir.DataType.FLOAT16, "huge": ir.DataType.FLOAT, "small": ir.DataType.FLOAT}
    found, _ = run(model, np.ones((1, 16), np.float32))
    np.testing.assert_allclose(found, np.full((1, 16), 16 * 1.25 * 16 * 1e6), rtol=1e-6)


def test_names_are_module_paths_and_unique() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n1"), helper.make_node("Relu", ["a"], ["y"], name="n2")]
    model = make(nodes, {}, (1, 2), (1, 2))
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = "['stage.0.act', 'aten.relu.default']"
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "secret"
    model, _ = run_passes(model, (NAME_BY_MODULE,))
    assert [node.name for node in model.graph] == ["stage.0.act/Relu", "stage.0.act/Relu_1"]
    assert b"secret" not in ir.to_proto(model).SerializeToString()
    # A second run finds the paths in the names.
    model, _ = run_passes(model, (NAME_BY_MODULE,))
    assert [node.name for node in model.graph] == ["stage.0.act/Relu", "stage.0.act/Relu_1"]


def test_conditions_are_checked_on_the_result() -> None:
    seen: list[int] = []

    def ensures(value: int) -> str | None:
        seen.append(value)
        return None if value < 3 else f"{value} is too large"

    add = GraphPass("add", lambda value: (value + 1, True), ensures=(ensures,))
    assert run_passes(0, (add, add)) == (2, True)
    assert seen == [1, 2]
    with pytest.raises(RuntimeFailure, match="pass 'add': 3 is too large after it ran"):
        run_passes(2, (add,))
    guarded = GraphPass("guarded", lambda value: (value, False), requires=(ensures,))
    with pytest.raises(RuntimeFailure, match="pass 'guarded': 5 is too large before it ran"):
        run_passes(5, (guarded,))


def test_weights_that_cannot_saturate_stay_int8_and_are_exact_at_full_range() -> None:
    model = quantized_conv(1, out_zero=-128)
    weight = constant(model.graph.initializers["w"])
    assert weight is not None
    # 64 + 64 is the most that a pair may be; activations of up to 255 meet it.
    model.graph.initializers["w"].const_value = ir.tensor((np.sign(weight) * 64).astype(np.int8), name="w")
    expected, _ = run(model, image(), optimize=False)
    model, _ = run_passes(model, (INTEGER_BIAS, UNSIGNED))
    kept = {name: constant(value) for name, value in model.graph.initializers.items()}
    assert np.int8 in {array.dtype.type for array in kept.values() if array is not None and array.ndim == 4}
    found, _ = run(model, image())
    difference = np.abs(found - expected) / STEP_OUT
    assert difference.max() < 1.01
    assert (difference > 0.5).mean() < 0.01


def padded_conv(
    edges: list[int], *, value: float = 0.0, quantized: bool = True, scale: float = STEP_IN, mode: str = "constant"
) -> ir.Model:
    """A Pad by ``edges`` before a convolution that pads by 1 itself, with Q and DQ before and between them."""
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {
        "w": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "edges": np.array(edges, np.int64),
        "value": np.array(value, np.float32),
        "s": np.array(STEP_IN, np.float32),
        "t": np.array(scale, np.float32),
        "z": np.array(7, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    nodes.append(helper.make_node("Pad", ["xd", "edges", "value"], ["p"], mode=mode))
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["p", "t", "z"], ["pq"]),
            helper.make_node("DequantizeLinear", ["pq", "t", "z"], ["pd"]),
        ]
    source = "pd" if quantized else "p"
    nodes.append(helper.make_node("Conv", [source, "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]))
    height, width = 6 + edges[2] + edges[6], 6 + edges[3] + edges[7]
    return make(nodes, constants, (1, 2, 6, 6), (1, 3, (height - 1) // 2 + 1, (width - 1) // 2 + 1))


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("edges", [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 2, 1, 0, 0, 0, 3]])
def test_zeros_around_an_image_move_into_the_convolution(edges: list[int], quantized: bool) -> None:
    x = np.random.default_rng(1).standard_normal((1, 2, 6, 6)).astype(np.float32)
    before, _ = run(padded_conv(edges, quantized=quantized), x)
    model, _ = run_passes(padded_conv(edges, quantized=quantized), (CONVOLUTION_PADS,))
    assert "Pad" not in kinds(model)
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert list(conv.attributes["pads"].as_ints()) == [1 + edges[2], 1 + edges[3], 1 + edges[6], 1 + edges[7]]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"value": 1.0},
        {"scale": 2 * STEP_IN},
        {"mode": "reflect"},
    ],
)
def test_other_padding_stays(options: dict[str, Any]) -> None:
    model, modified = run_passes(padded_conv([0, 0, 0, 0, 0, 0, 1, 1], **options), (CONVOLUTION_PADS,))
    assert "Pad" in kinds(model)
    assert not modified
