"""Weights stored as float16, computed in float32.

A Cast stands between each weight and its op. ONNX Runtime folds it when it loads the model, so the file is half as large and
the speed that of float32. Computing in float16 is left to runtimes that have the kernels: on most CPUs the CPU provider would
cast every activation to float32 and back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import add_constant, constant, new_node

# Below this many elements a Cast takes more bytes than it saves.
MIN_ELEMENTS = 128
LARGEST = float(np.finfo(np.float16).max)


def half_weights(model: ir.Model) -> tuple[ir.Model, bool]:
    """Put a Cast behind every large float32 initializer whose values float16 can hold."""
    modified = False
    for value in list(model.graph.initializers.values()):
        array = constant(value)
        if not _is_candidate(value) or array is None:
            continue
        first = next(iter(value.uses())).node
        half = add_constant(model, f"{value.name}_f16", array.astype(np.float16))
        cast = new_node(first, "Cast", [half], {"to": ir.DataType.FLOAT.value})
        cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, value.shape
        model.graph.insert_before(first, cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del model.graph.initializers[str(value.name)]
        modified = True
    model.graph.sort()
    return model, modified


def _is_candidate(value: ir.Value) -> bool:
    array = constant(value)
    if (
        array is None
        or array.dtype != np.float32
        or array.size < MIN_ELEMENTS
        or not list(value.uses())
        or value.is_graph_output()
    ):
        return False
    return float(np.abs(array).max()) <= LARGEST


def _no_large_float_weights(model: ir.Model) -> str | None:
    left = [value.name for value in model.graph.initializers.values() if _is_candidate(value)]
    return f"weight '{left[0]}' is float32" if left else None


HALF_WEIGHTS: GraphPass[ir.Model] = GraphPass("onnx-half-weights", half_weights, ensures=(_no_large_float_weights,))
