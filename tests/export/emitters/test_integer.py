"""INT8 files of all formats, run in their runtimes, against the fake-quantized torch graph, in output steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Artifact, Format, Precision, TensorSpec
from edgefold.export.emitters import EmitOptions
from edgefold.export.program import Program
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import Q, QParams

Emitted = Callable[..., Artifact]
Run = Callable[..., dict[str, NDArray[Any]]]
Get = Callable[[str], Program]
slow = pytest.mark.slow

# How far a runtime's own kernels may be from rounding the real result: pooling, concat and hard-swish rescale in LiteRT.
STEPS = {"residual": 0.01, "segment": 0.01, "mobile": 2.01}


def to_file(tensor: Tensor, spec: TensorSpec) -> NDArray[Any]:
    """A tensor in the layout and type of a file's input."""
    array: NDArray[Any] = (tensor.permute(0, 2, 3, 1).contiguous() if spec.layout == "nhwc" else tensor).numpy()
    if spec.scale is None or spec.zero_point is None:
        return array
    limits = np.iinfo(spec.dtype)
    return np.clip(np.rint(array / np.float32(spec.scale)) + spec.zero_point, limits.min, limits.max).astype(spec.dtype)


def from_file(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A file's output in torch's layout, as real numbers."""
    assert array.dtype == spec.dtype
    if spec.scale is not None and spec.zero_point is not None:
        array = (array.astype(np.int32) - spec.zero_point) * np.float32(spec.scale)
    return array.transpose(0, 3, 1, 2) if spec.layout == "nhwc" else array


def output_scales(program: Program) -> list[float]:
    """The step of each output."""
    values = program.graph.graph.output_node().args[0]
    params: list[QParams] = [value.meta[Q] for value in values]  # type: ignore[union-attr]  # a tuple of nodes
    return [one.scale for one in params]


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize(
    ("name", "io", "layout"),
    [
        ("residual", "float32", "nchw"),
        ("segment", "int8", "nhwc"),
        pytest.param("residual", "uint8", "nhwc", marks=slow),
        pytest.param("residual", "int8", "nchw", marks=slow),
        pytest.param("segment", "uint8", "nchw", marks=slow),
        pytest.param("mobile", "float32", "nchw", marks=slow),
        pytest.param("mobile", "int8", "nhwc", marks=slow),
    ],
)
def test_outputs_match_the_fake_quantized_graph(
    name: str, io: str, layout: str, format: Format, quantized_of: Get, emitted: Emitted, run: Run
) -> None:
    program = quantized_of(name)
    options = EmitOptions(io=io, layout=layout)  # type: ignore[arg-type]  # parametrized
    artifact = emitted(name, format, Precision.INT8, options)
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {io}
    reference = insert_qdq(program.graph, fold_weights=True)
    torch.manual_seed(9)
    for _ in range(4):
        inputs = tuple(torch.randn_like(tensor) for tensor in program.example_inputs)
        found = run(artifact.path, {spec.name: to_file(x, spec) for spec, x in zip(artifact.inputs, inputs, strict=True)})
        with torch.no_grad():
            expected = reference(*inputs)
        for spec, value, scale in zip(artifact.outputs, expected, output_scales(program), strict=True):
            difference = np.abs(from_file(found[spec.name], spec) - value.numpy()).max() / scale
            assert difference <= STEPS[name]


def test_onnx_runtime_fuses_every_layer(emitted: Emitted, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    path = emitted("residual", Format.ONNX, Precision.INT8).path
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # a note that such a file fits this CPU only
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 4
    assert kinds.count("QLinearAdd") == 2
    assert kinds.count("QGemm") == 1
    assert kinds.count("QLinearGlobalAveragePool") == 1
    # What is float is the conversion at each end.
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    assert not {"Conv", "Gemm", "Add", "Relu", "Clip", "ReduceMean"} & set(kinds)


def test_tflite_is_integer_inside(emitted: Emitted) -> None:
    from edgefold.export.passes.tflite_model import load, type_name

    path = emitted("residual", Format.TFLITE, Precision.INT8).path
    model = load(path.read_bytes())
    kinds = [model.kind(operator) for operator in model.graph.operators]
    assert kinds[:2] == ["TRANSPOSE", "QUANTIZE"]
    assert kinds[-1] == "DEQUANTIZE"
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds[2:-1])
    for operator in model.graph.operators:
        if model.kind(operator) in ("CONV_2D", "FULLY_CONNECTED"):
            weight, bias = (model.tensor(index) for index in operator.inputs[1:3])
            assert type_name(weight.type) == "int8"
            assert type_name(bias.type) == "int32"
            assert len(weight.quantization.scale) == weight.shape[0] == len(bias.quantization.scale)


def test_executorch_is_one_delegate_call(emitted: Emitted) -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary

    path = emitted("residual", Format.EXECUTORCH, Precision.INT8).path
    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]
    assert [type(step.instr_args).__name__ for step in plan.chains[0].instructions] == ["DelegateCall"]
    assert plan.operators == []


@pytest.mark.parametrize("format", list(Format))
def test_ends_carry_scale_and_zero_point(format: Format, quantized_of: Get, emitted: Emitted) -> None:
    program = quantized_of("segment")
    params: QParams = next(node.meta[Q] for node in program.graph.graph.nodes if node.name == "image")
    artifact = emitted("segment", format, Precision.INT8, EmitOptions(io="int8", layout="nhwc"))
    image = artifact.inputs[0]
    assert (image.dtype, image.scale, image.zero_point) == ("int8", params.scale, params.zero_point)


def test_a_convolution_may_be_the_last_op_of_a_file_in_nhwc(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    images = torch.randn(4, 1, 3, 8, 8)
    quantized = edgefold.quantize_model(net, images[0], calibration=list(images))
    outputs = []
    for layout in ("nchw", "nhwc"):
        artifact = edgefold.export_model(
            quantized, images[0], format="onnx", layout=layout, timing=False, out=tmp_path / f"{layout}.onnx"
        )
        outputs.append(edgefold.run(artifact, images[0].numpy())[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
