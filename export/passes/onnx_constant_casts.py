"""Constants in another type, as constants of that type.

The exporter computes small ones itself and leaves large ones: the zero points of a classifier of more than 8,192 classes came
out of a Cast, and its layer counted as one whose parameters are computed.
"""

from __future__ import annotations

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import add_constant, constant


def constant_casts(model: ir.Model) -> tuple[ir.Model, bool]:
    """Let an initializer stand for each Cast of one."""
    casts = [node for node in model.graph if _is_constant_cast(node)]
    for node in casts:
        value = constant(node.inputs[0])
        assert value is not None
        made = add_constant(model, f"{node.outputs[0].name}_constant", value.astype(_type_of(node).numpy()))
        ir.convenience.replace_all_uses_with(node.outputs[0], made)
        model.graph.remove(node, safe=True)
    return model, bool(casts)


def _is_constant_cast(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    return constant(node.inputs[0]) is not None


def _type_of(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _none_left(model: ir.Model) -> str | None:
    names = [node.name for node in model.graph if _is_constant_cast(node)]
    return f"'{names[0]}' casts a constant" if names else None


CONSTANT_CASTS: GraphPass[ir.Model] = GraphPass("onnx-constant-casts", constant_casts, ensures=(_none_left,))
