"""Tensor names that say which PyTorch module a tensor comes from.

The converter names a tensor after the module stack of its op, ``Class_attribute/Class_attribute;``, joins the names of ops that
it fuses by ``;;`` and appends numbers; class names with underscores make that ambiguous. So the stack of each node is replaced by
one entry that reads as the module path before the conversion, and afterwards a tensor is called ``path`` when it is
computed and ``path/const`` when it is a constant.
"""

from __future__ import annotations

from collections import Counter

from torch.fx import GraphModule

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.tflite_model import TfliteModel
from edgefold.quantize.graph import module_path


def stack_as_path(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Make the module stack of each call one entry whose "class" is the module path."""
    graph = clone(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"path": ("", module_path(node))}
    return graph, True


def name_by_module(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Rename all tensors but inputs and outputs."""
    taken: Counter[str] = Counter()
    ends = {*model.graph.inputs, *model.graph.outputs}
    for index, tensor in enumerate(model.graph.tensors):
        if index in ends:
            continue
        base = main_path((tensor.name or b"").decode(errors="replace")) or "main"
        if model.root.buffers[tensor.buffer].data is not None:
            base += "/const"
        taken[base] += 1
        tensor.name = base if taken[base] == 1 else f"{base}_{taken[base] - 1}"
    return model, True


def main_path(name: str) -> str:
    """The module path in a converter's tensor name; of fused ops, the first to run, which the converter names last."""
    return name.split(";;")[-1].partition(";")[0]


STACK_AS_PATH: GraphPass[GraphModule] = GraphPass("tflite-stack-as-path", stack_as_path)
NAME_BY_MODULE: GraphPass[TfliteModel] = GraphPass("tflite-name-by-module", name_by_module)
