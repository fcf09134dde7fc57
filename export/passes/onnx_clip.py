"""Activations that only clip, moved into the integers or dropped.

Quantization is monotone, so Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)) exactly. When Q(a) and Q(b) are the ends of the integer
type (ReLU with the zero point at its lower end, ReLU6 with a range of 6) the clip says nothing that saturation does not say, and
it goes. Otherwise it becomes a Clip on integers behind the QuantizeLinear, so that the layer before it still fuses.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import QUANTIZE, Affine, add_constant, affine_of, constant, new_node, only_consumer

_CLIPS = ("Relu", "Clip")


def integer_clip(model: ir.Model) -> tuple[ir.Model, bool]:
    """Move each clip behind the quantization that follows it, or drop it."""
    modified = False
    for node in list(model.graph):
        if node.op_type in _CLIPS:
            quantize = only_consumer(node.outputs[0], QUANTIZE)
            affine = affine_of(quantize) if quantize is not None else None
            bounds = _bounds(node)
            if quantize is None or affine is None or bounds is None or not affine.per_tensor:
                continue
            quantize.replace_input_with(0, node.inputs[0])
            model.graph.remove(node, safe=True)
            _clip_integers(model, quantize, affine, bounds)
            modified = True
    return model, modified


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """The range of a Relu or Clip; ``None`` when it is computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = []
    for index, default in ((1, -float("inf")), (2, float("inf"))):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        if value is not None and array is None:
            return None
        ends.append(default if array is None else float(array))
    return ends[0], ends[1]


def _clip_integers(model: ir.Model, quantize: ir.Node, affine: Affine, bounds: tuple[float, float]) -> None:
    low, high = (affine.to_integer(bound) for bound in bounds)
    limits = np.iinfo(affine.zero_point.dtype)
    if (low, high) == (limits.min, limits.max):
        return
    ends: list[ir.Value | None] = [
        add_constant(model, f"bound_{end}", np.array(end, affine.zero_point.dtype)) for end in (low, high)
    ]
    clip = new_node(quantize, "Clip", [quantize.outputs[0], *ends])
    model.graph.insert_after(quantize, clip)
    ir.convenience.replace_all_uses_with(quantize.outputs[0], clip.outputs[0], replace_graph_outputs=False)
    clip.replace_input_with(0, quantize.outputs[0])


def _no_float_clip_before_quantize(model: ir.Model) -> str | None:
    for node in model.graph:
        if node.op_type in _CLIPS and only_consumer(node.outputs[0], QUANTIZE) is not None and _bounds(node) is not None:
            return f"float '{node.name}' is left before a QuantizeLinear"
    return None


INTEGER_CLIP: GraphPass[ir.Model] = GraphPass("onnx-integer-clip", integer_clip, ensures=(_no_float_clip_before_quantize,))
