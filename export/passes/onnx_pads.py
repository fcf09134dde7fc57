"""Zeros around an image, moved into the convolution that reads them; any other padding of integers, in integers.

ONNX convolutions pad each side by a number of its own. A Pad before one costs a copy of the image, and in ONNX Runtime it stays
there between quantized layers. Zero is exact on every grid, so the convolution's own zeros are the same integers. Of what cannot
go into a convolution (other values, other modes, padding of channels) ONNX Runtime makes no integer op by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    Affine,
    add_constant,
    affine_of,
    constant,
    new_node,
    only_consumer,
    producer,
)


def convolution_pads(model: ir.Model) -> tuple[ir.Model, bool]:
    """Drop each Pad of zeros along space that one convolution alone reads, directly or over a Q and a DQ of its input's scale."""
    modified = False
    for conv in list(model.graph):
        if conv.op_type != "Conv" or conv.domain != "":
            continue
        pad, reader = _pad_before(conv)
        edges = _edges(pad) if pad is not None else None
        given = _given(conv)
        if pad is None or edges is None or given is None:
            continue
        conv.attributes.pop("auto_pad", None)
        conv.attributes["pads"] = ir.AttrInt64s("pads", [int(one) for one in given + edges])
        image = pad.inputs[0]
        assert image is not None
        reader.replace_input_with(0, image)
        model.graph.remove(pad, safe=True)
        value = conv.inputs[0]
        while value is not None and value is not image:  # what stands between them has the shape without padding now
            value.shape = image.shape
            source = value.producer()
            value = source.inputs[0] if source is not None else None
        modified = True
    return model, modified


def integer_pads(model: ir.Model) -> tuple[ir.Model, bool]:
    """Let each Pad between a DQ and a Q of one scale pad the integers: with the one that stands for its value."""
    modified = False
    for pad in list(model.graph):
        around = _integers_around(pad)
        if around is None:
            continue
        before, after, affine = around
        inputs = [before.inputs[0], *pad.inputs[1:]]
        if len(inputs) > 2 and inputs[2] is not None:
            value = constant(inputs[2])
            assert value is not None
            inputs[2] = add_constant(
                model, f"{pad.name}_value", np.array(affine.to_integer(float(value)), affine.zero_point.dtype)
            )
        elif pad.attributes.get_string("mode", "constant") == "constant":
            inputs = [*inputs[:2], add_constant(model, f"{pad.name}_value", affine.zero_point), *inputs[3:]]
        node = new_node(after, "Pad", inputs, dict(pad.attributes))
        node.name = pad.name
        node.metadata_props.update(pad.metadata_props)
        model.graph.insert_before(after, node)
        ir.convenience.replace_all_uses_with(after.outputs[0], node.outputs[0])
        model.graph.remove((after, pad), safe=True)
        modified = True
    return model, modified


def _integers_around(pad: ir.Node) -> tuple[ir.Node, ir.Node, Affine] | None:
    """The DQ before a Pad, the Q behind it, and the scale of both; ``None`` where it is no padding of integers."""
    if pad.op_type != "Pad" or pad.domain != "":
        return None
    before, after = producer(pad.inputs[0], DEQUANTIZE), only_consumer(pad.outputs[0], QUANTIZE)
    if before is None or after is None or after.outputs[0].is_graph_output():
        return None
    scales = affine_of(before), affine_of(after)
    if scales[0] is None or scales[1] is None or not scales[0].per_tensor or not scales[0].same(scales[1]):
        return None
    if len(pad.inputs) > 2 and pad.inputs[2] is not None and constant(pad.inputs[2]) is None:
        return None
    return before, after, scales[0]


def _pad_before(conv: ir.Node) -> tuple[ir.Node | None, ir.Node]:
    """The Pad that a convolution alone reads, and the node that reads it."""
    pad, reader = producer(conv.inputs[0], "Pad"), conv
    dequantize = producer(conv.inputs[0], DEQUANTIZE)
    quantize = producer(dequantize.inputs[0], QUANTIZE) if dequantize is not None else None
    if dequantize is not None and quantize is not None and only_consumer(quantize.outputs[0], DEQUANTIZE) is dequantize:
        pad, reader = producer(quantize.inputs[0], "Pad"), quantize
        before = producer(pad.inputs[0], DEQUANTIZE) if pad is not None else None
        scales = [affine_of(node) for node in (before, quantize) if node is not None]
        if len(scales) < 2 or scales[0] is None or scales[1] is None or not scales[0].same(scales[1]):
            return None, conv
        if only_consumer(dequantize.outputs[0], "Conv") is not conv:
            return None, conv
    if pad is None or only_consumer(pad.outputs[0], reader.op_type) is not reader:
        return None, conv
    return pad, reader


def _edges(pad: ir.Node) -> np.ndarray[Any, Any] | None:
    """The zeros along space, begins and then ends; ``None`` where a Pad does anything else."""
    mode = pad.attributes.get("mode")
    edges, value = constant(pad.inputs[1]), constant(pad.inputs[2]) if len(pad.inputs) > 2 else np.zeros(1)
    if (mode is not None and mode.as_string() != "constant") or edges is None or value is None or value.any():
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    begins, ends = edges.reshape(2, -1)
    if begins[:2].any() or ends[:2].any() or edges.min() < 0:
        return None
    return np.concatenate([begins[2:], ends[2:]])


def _given(conv: ir.Node) -> np.ndarray[Any, Any] | None:
    """The padding that a convolution has; ``None`` where it depends on the image."""
    auto = conv.attributes.get("auto_pad")
    if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
        return None
    pads = conv.attributes.get("pads")
    weight = conv.inputs[1]
    rank = len(weight.shape) - 2 if weight is not None and weight.shape is not None else None
    if pads is not None:
        return np.array(pads.as_ints())
    return None if rank is None else np.zeros(2 * rank, np.int64)


CONVOLUTION_PADS: GraphPass[ir.Model] = GraphPass("onnx-convolution-pads", convolution_pads)
INTEGER_PADS: GraphPass[ir.Model] = GraphPass("onnx-integer-pads", integer_pads)
