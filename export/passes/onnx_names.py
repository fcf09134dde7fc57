"""Node names that say which PyTorch module a node comes from, and nothing else of the exporter's bookkeeping.

The exporter attaches source lines and class hierarchies to each node: several hundred bytes a node that no runtime reads. What a
profile needs is the module path, so a node is called ``path.of.module/OpType``, with a number when the name is taken.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass

_CLASSES = "pkg.torch.onnx.class_hierarchy"


def name_by_module(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rename all nodes and drop the exporter's metadata."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        base = f"{module_path(node)}/{node.op_type}"
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base] - 1}"
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    return model, True


def module_path(node: ir.Node) -> str:
    """The path of the innermost module that a node comes from (see `edgefold.export.passes.module_names`)."""
    text = node.metadata_props.get(_CLASSES)
    if text is not None:
        # The path stands where the class would; the last entry is the op itself.
        classes: list[str] = ast.literal_eval(text)
        return classes[-2] if len(classes) > 1 else ""
    # A node made or renamed by an earlier pass carries its path in its name.
    return (node.name or "").rpartition("/")[0]


def _unique_names(model: ir.Model) -> str | None:
    names = Counter(node.name for node in model.graph)
    twice = [name for name, count in names.items() if count > 1]
    return f"node name '{twice[0]}' is used twice" if twice else None


NAME_BY_MODULE: GraphPass[ir.Model] = GraphPass("onnx-name-by-module", name_by_module, ensures=(_unique_names,))
