"""Values that lose nearly all of their integers where they are joined with much larger ones on the way to an output.

A concat has one scale. Where boxes of 0…500 are joined with scores of 0…1, a step is two, and every score becomes zero, which an
error over the whole output does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.graph import module_path
from edgefold.quantize.paired import walk
from edgefold.quantize.scheme import Q

FEW: Final = 16  # steps: 4 bits, some 26 dB for a value that fills them


def coarse_joins(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> tuple[str, ...]:
    """A sentence for each value that keeps fewer than `FEW` steps in a concat whose value is an output.

    Args:
        graph: with its float parameters, as `edgefold.quantize.calibrate.annotated` makes it.
        samples: inputs of the graph.
    """
    joins = [node for node in graph.graph.nodes if node.target is torch.ops.aten.cat.default and Q in node.meta and _ends(node)]
    spans: dict[Node, float] = {source: 0.0 for join in joins for source in join.all_input_nodes}

    def add(node: Node, exact: list[Any], _: list[Any]) -> None:
        if node in spans:
            low, high = min(float(value.min()) for value in exact), max(float(value.max()) for value in exact)
            spans[node] = high - low

    if joins:
        walk(graph, samples, after=add)
    found = []
    for join in joins:
        for position, source in enumerate(join.all_input_nodes):
            steps = spans[source] / join.meta[Q].scale
            if 0 < steps < FEW:
                found.append(
                    f"'{join.name}' joins '{_name(source)}' (its input {position}) with larger values: {steps:.1f} steps "
                    "are left of it in the output; return it as an output of its own"
                )
    return tuple(found)


def _name(node: Node) -> str:
    """Where a value comes from: a clone has only its input's values, with another scale."""
    return module_path(node.all_input_nodes[0] if node.target is torch.ops.aten.clone.default else node)


def _ends(node: Node) -> bool:
    """Whether a value is an output, by itself or moved."""
    return any(user.op == "output" or (user.meta.get(Q) == node.meta[Q] and _ends(user)) for user in node.users)
