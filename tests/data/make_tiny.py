"""Writes the tiny models beside it: one small network in every format, as Edgefold writes it and as a foreign tool does.

Two 3x3 convolutions with ReLU between them (3 -> 8 -> 4 channels, 16x16 pixels, padding 1), seeded weights without bias:
``tiny.onnx``, ``tiny.tflite`` (NHWC), ``tiny-int8.tflite`` (int8 in and out) and ``tiny.pte``, each with Edgefold's metadata, and
``foreign.*`` without. The weights are in ``weights.npz``, so that a test computes its own reference.
Run: python tests/data/make_tiny.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 16
CHANNELS = (3, 8, 4)
OUT = Path(__file__).with_name("tiny")
# Real ranges of the input, the hidden layer and the output, wide enough for inputs in [-1, 1].
SCALES = (1 / 127, 6 / 127, 12 / 127)

Array = NDArray[np.float32]


def weights() -> list[Array]:
    """Weights of each layer, (out, in, 3, 3)."""
    rng = np.random.default_rng(0)
    shapes = [(CHANNELS[1], CHANNELS[0], 3, 3), (CHANNELS[2], CHANNELS[1], 3, 3)]
    return [(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32) for shape in shapes]


def metadata(layout: str, dtype: str, precision: str) -> str:
    """The text that Edgefold stores in a file."""

    def spec(name: str, channels: int, scale: float) -> dict[str, Any]:
        shape = [1, channels, SIZE, SIZE] if layout == "nchw" else [1, SIZE, SIZE, channels]
        quantization = {"scale": scale, "zero_point": 0} if dtype == "int8" else {"scale": None, "zero_point": None}
        return {"name": name, "shape": shape, "dtype": dtype, "layout": layout, **quantization}

    data = {"schema": "edgefold.artifact/1", "producer": "edgefold test", "precision": precision}
    specs = {"inputs": [spec("input", CHANNELS[0], SCALES[0])], "outputs": [spec("output", CHANNELS[-1], SCALES[2])]}
    return json.dumps(data | specs)


def onnx_model(text: str | None) -> bytes:
    """The network as ONNX, opset 17."""
    from onnx import TensorProto, checker, helper, numpy_helper

    first, second = weights()
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["conv0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv0"], ["relu0"]),
        helper.make_node("Conv", ["relu0", "w1"], ["output"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, CHANNELS[0], SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, CHANNELS[-1], SIZE, SIZE])],
        [numpy_helper.from_array(first, "w0"), numpy_helper.from_array(second, "w1")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if text is not None:
        helper.set_model_props(model, {"edgefold": text})
    checker.check_model(model)
    return bytes(model.SerializeToString())


def tflite_model(text: str | None, *, int8: bool) -> bytes:
    """The network as TFLite, NHWC; with ``int8``, symmetric weights per output channel and int8 activations."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, conv = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], [conv]
    conv.builtinCode = conv.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    conv.version = 3 if int8 else 1
    graph.tensors, graph.operators = [], []
    kinds = {"float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32}

    def buffer(data: NDArray[Any]) -> int:
        entry = schema.BufferT()
        entry.data = np.frombuffer(data.tobytes(), np.uint8)
        model.buffers.append(entry)
        return len(model.buffers) - 1

    def tensor(name: str, shape: tuple[int, ...], kind: str, data: NDArray[Any] | None = None, scale: Any = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type = name, list(shape), kinds[kind]
        entry.buffer = 0 if data is None else buffer(data)
        if scale is not None:
            entry.quantization = schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            entry.quantization.scale, entry.quantization.zeroPoint = scales, np.zeros(len(scales), np.int64)
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    value = tensor("input", (1, SIZE, SIZE, CHANNELS[0]), "int8" if int8 else "float32", scale=SCALES[0] if int8 else None)
    graph.inputs = [value]
    for layer, weight in enumerate(weights()):
        n, m = weight.shape[:2]
        ohwi = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        if int8:
            step = np.abs(weight).max(axis=(1, 2, 3)) / 127
            integer = np.rint(ohwi / step[:, None, None, None]).astype(np.int8)
            w = tensor(f"w{layer}", (n, 3, 3, m), "int8", integer, step)
            b = tensor(f"b{layer}", (n,), "int32", np.zeros(n, np.int32), step * SCALES[layer])
        else:
            w = tensor(f"w{layer}", (n, 3, 3, m), "float32", ohwi)
            b = tensor(f"b{layer}", (n,), "float32", np.zeros(n, np.float32))
        name = "output" if layer else "hidden"
        kind, scale = ("int8", SCALES[layer + 1]) if int8 else ("float32", None)
        result = tensor(name, (1, SIZE, SIZE, n), kind, scale=scale)
        op, options = schema.OperatorT(), schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
        options.dilationHFactor = options.dilationWFactor = 1
        kinds_of_activation = schema.ActivationFunctionType
        options.fusedActivationFunction = kinds_of_activation.NONE if layer else kinds_of_activation.RELU
        op.builtinOptions, op.builtinOptionsType = options, schema.BuiltinOptions.Conv2DOptions
        op.opcodeIndex, op.inputs, op.outputs = 0, [value, w, b], [result]
        graph.operators.append(op)
        value = result
    graph.outputs = [value]
    if text is not None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = "edgefold", buffer(np.frombuffer(text.encode(), np.uint8))
        model.metadata = [entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def pte_model(text: str | None) -> bytes:
    """The network as an ExecuTorch program, delegated to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    layers: list[torch.nn.Module] = []
    for weight in weights():
        conv = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
        conv.weight.data = torch.from_numpy(weight)
        layers += [conv, torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1]).eval()
    program = torch.export.export(module, (torch.zeros(1, CHANNELS[0], SIZE, SIZE),))
    methods = None if text is None else {"edgefold_metadata": text}
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=methods)
    return bytes(lowered.to_executorch().buffer)


def main() -> None:
    """Writes every file."""
    OUT.mkdir(exist_ok=True)
    files = {
        "tiny.onnx": onnx_model(metadata("nchw", "float32", "fp32")),
        "foreign.onnx": onnx_model(None),
        "tiny.tflite": tflite_model(metadata("nhwc", "float32", "fp32"), int8=False),
        "tiny-int8.tflite": tflite_model(metadata("nhwc", "int8", "int8"), int8=True),
        "foreign-int8.tflite": tflite_model(None, int8=True),
        "tiny.pte": pte_model(metadata("nchw", "float32", "fp32")),
        "foreign.pte": pte_model(None),
    }
    for name, data in files.items():
        (OUT / name).write_bytes(data)
    first, second = weights()
    np.savez(OUT / "weights.npz", first=first, second=second)


if __name__ == "__main__":
    main()
