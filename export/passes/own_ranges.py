"""Values of a fixed range that share parameters with others, parted from them.

Integer kernels fix the range of a sigmoid, a softmax and a tanh: [0, 1) or [-1, 1). Ops that only move values give their output
the parameters of their inputs, so a sigmoid concatenated with coordinates, or padded with a 4, would have to share a range that
is too small for the others, or one that its kernel refuses. A clone after it keeps both: the kernel has its range, and the clone
takes the values to the range that is shared.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import annotate, fixed_params, fixed_range
from edgefold.quantize.graph import add_clone
from edgefold.quantize.scheme import Grid


def own_ranges_pass(grid: Grid) -> GraphPass[GraphModule]:
    """The pass for activations of these integers; needs ``meta["val"]``."""

    def run(graph: GraphModule) -> tuple[GraphModule, bool]:
        graph = clone(graph)
        found = _sharing(graph, grid)
        for node, users in found.items():
            add_clone(graph, node, users)
        graph.graph.lint()
        graph.recompile()
        return graph, bool(found)

    def none_left(graph: GraphModule) -> str | None:
        names = [node.name for node in _sharing(graph, grid)]
        return f"'{names[0]}' shares its fixed range with values outside it" if names else None

    return GraphPass("own-ranges", run, ensures=(none_left,))


def _sharing(graph: GraphModule, grid: Grid) -> dict[Node, list[Node]]:
    """The nodes of a fixed range that share parameters with values outside it, and their users among these."""
    nodes = {node.name: node for node in graph.graph.nodes}
    found = {}
    for names in annotate(graph, grid=grid).groups:
        group = [nodes[name] for name in names]
        if fixed_range(group, grid) is None:
            apart = [node for node in group if fixed_params(node, grid) is not None]
            found.update({node: [user for user in node.users if _takes_over(user, group)] for node in apart})
    return found


def _takes_over(user: Node, group: list[Node]) -> bool:
    """Whether a user shares the parameters of the group; a split has none, its parts do."""
    return user in group or any(part in group for part in user.users)
