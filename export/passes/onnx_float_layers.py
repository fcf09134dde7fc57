"""Layers that stay in float among integers, kept from being quantized once more by ONNX Runtime.

A Conv, ConvTranspose or Gemm that reads a DequantizeLinear, writes into a QuantizeLinear and has a float weight gets an 8-bit
weight when ONNX Runtime 1.20 or later loads the file (its WeightBiasQuantization), at a scale that nobody chose: what was left
in float for its accuracy loses it again. A LeakyRelu of slope 1 behind the layer computes nothing, is fused into the layer's own
kernel, and ends that pattern. A clip does not: the runtime looks through it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, QUANTIZE, constant, new_node, producer

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_BARRIER = "LeakyRelu"


def keep_float_layers(model: ir.Model) -> tuple[ir.Model, bool]:
    """Put a LeakyRelu of slope 1 behind each layer with a float weight between a DequantizeLinear and a QuantizeLinear."""
    layers = [node for node in model.graph if _would_be_quantized(node)]
    for layer in layers:
        barrier = new_node(layer, _BARRIER, [layer.outputs[0]], {"alpha": 1.0})
        model.graph.insert_after(layer, barrier)
        ir.convenience.replace_all_uses_with(layer.outputs[0], barrier.outputs[0], replace_graph_outputs=True)
        barrier.replace_input_with(0, layer.outputs[0])
    return model, bool(layers)


def _would_be_quantized(node: ir.Node) -> bool:
    return (
        node.op_type in _LAYERS
        and node.domain == ""
        and producer(node.inputs[0], DEQUANTIZE) is not None
        and constant(node.inputs[1]) is not None
        and _reaches_quantize(node.outputs[0])
    )


def _reaches_quantize(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads the value, or a Relu or Clip of it."""
    readers = [use.node for use in value.uses()]
    return any(
        reader.op_type == QUANTIZE or (reader.op_type in ("Relu", "Clip") and _reaches_quantize(reader.outputs[0]))
        for reader in readers
    )


def _none_left(model: ir.Model) -> str | None:
    left = [node.name for node in model.graph if _would_be_quantized(node)]
    return f"'{left[0]}' would be quantized by the runtime" if left else None


KEEP_FLOAT_LAYERS: GraphPass[ir.Model] = GraphPass("onnx-keep-float-layers", keep_float_layers, ensures=(_none_left,))
