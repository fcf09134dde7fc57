"""ReduceMean over the spatial axes becomes GlobalAveragePool, which ONNX Runtime has an integer kernel for.

The graph keeps the dimensions (see `edgefold.export.passes.global_mean`), so nothing else changes.
"""

from __future__ import annotations

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import constant, new_node


def global_pool(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite every ReduceMean that averages all axes after the second and keeps them."""
    modified = False
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and _is_spatial(node):
            pool = new_node(node, "GlobalAveragePool", [node.inputs[0]])
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [pool], node.outputs, pool.outputs)
            modified = True
    return model, modified


def _is_spatial(node: ir.Node) -> bool:
    source = node.inputs[0]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or axes is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    rank = len(source.shape)
    return rank > 2 and sorted(int(axis) % rank for axis in axes.ravel()) == list(range(2, rank))


def _no_spatial_mean(model: ir.Model) -> str | None:
    names = [node.name for node in model.graph if node.op_type == "ReduceMean" and _is_spatial(node)]
    return f"'{names[0]}' is left" if names else None


GLOBAL_POOL: GraphPass[ir.Model] = GraphPass("onnx-global-pool", global_pool, ensures=(_no_spatial_mean,))
