"""The module path of each node, in the one place that all converters read.

Converters name what they write after the module stack of a node: class names, attribute names, joined in ways that cannot be
taken apart again. So the stack of each call is replaced by a single entry whose "class" is the path of the innermost module, or
the name of the node where it comes from no submodule. What the emitters do with it is in their own passes.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import module_path


def stack_as_path(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Make the module stack of each call one entry that reads as its path."""
    graph = clone(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"path": ("", _path(node))}
    return graph, True


def path_of(node: Node) -> str:
    """The path that `stack_as_path` wrote, on a node that any later stage has made of it; empty where there is none."""
    stack = node.meta.get("nn_module_stack") or {}
    entry = stack.get("path") or next(iter(reversed(stack.values())), ("", ""))
    return str(entry[1])


def _path(node: Node) -> str:
    """The module path; a conversion that belongs to no submodule is named after the value that it converts."""
    if "path" in (node.meta.get("nn_module_stack") or {}):
        return path_of(node)  # the pass has been here before
    source = node
    while module_path(source) == source.name and str(source.target).startswith("quantized_decomposed"):
        source = source.all_input_nodes[0]
    return module_path(source)


def _every_call_has_a_path(graph: GraphModule) -> str | None:
    for node in graph.graph.nodes:
        if node.op == "call_function" and not path_of(node):
            return f"node '{node.name}' has no path"
    return None


STACK_AS_PATH: GraphPass[GraphModule] = GraphPass("stack-as-path", stack_as_path, ensures=(_every_call_has_a_path,))
