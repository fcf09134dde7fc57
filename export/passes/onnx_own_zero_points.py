"""A zero point of its own for every weight.

On x86 CPUs whose 8-bit products saturate, ONNX Runtime can turn int8 weights into uint8 ones when it loads a model
(``session.x64quantprecision``); it does so initializer by initializer and fails on one that two weights share.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import DEQUANTIZE, add_constant, constant, is_weight


def own_zero_points(model: ir.Model) -> tuple[ir.Model, bool]:
    """Copy each zero point that several weights share."""
    modified = False
    for node in _weights(model):
        shared, array = node.inputs[2], constant(node.inputs[2])
        if shared is not None and array is not None and len(list(shared.uses())) > 1:
            node.replace_input_with(2, add_constant(model, shared.name or "zero", array))
            modified = True
    return model, modified


def _weights(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == DEQUANTIZE and is_weight(node) and len(node.inputs) > 2]


def _none_shared(model: ir.Model) -> str | None:
    counts = Counter(value.name for node in _weights(model) if (value := node.inputs[2]) is not None)
    shared = [name for name, count in counts.items() if count > 1]
    return f"zero point '{shared[0]}' is shared" if shared else None


OWN_ZERO_POINTS: GraphPass[ir.Model] = GraphPass("onnx-own-zero-points", own_zero_points, ensures=(_none_shared,))
