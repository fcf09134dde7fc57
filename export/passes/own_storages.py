"""Constants with a storage of their own, for ExecuTorch.

A part of a larger tensor (some rows of a weight, of its scales or of its bias) has the storage of the whole. The serializer of
ExecuTorch's XNNPACK backend writes a storage from its start, whatever part of it a constant is
(`backends/xnnpack/operators/node_visitor.py`), and the file would compute with other numbers.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer, constant_of


def own_storages(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Copy every constant that is a part of a larger tensor."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_part(graph, node)]
    for node in found:
        with graph.graph.inserting_before(node):
            made = add_buffer(graph, f"{str(node.target).replace('.', '_')}_own", constant_of(graph, node).clone())
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_part(graph: GraphModule, node: Node) -> bool:
    if node.op != "get_attr":
        return False
    value: Tensor = constant_of(graph, node)
    return value.untyped_storage().nbytes() != value.numel() * value.element_size()


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_part(graph, node)]
    return f"'{names[0]}' is a part of a larger tensor" if names else None


OWN_STORAGES: GraphPass[GraphModule] = GraphPass("own-storages", own_storages, ensures=(_none_left,))
