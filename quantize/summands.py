"""Summands that are tiny beside their sum: the branches of residual blocks behind a small layer scale, say.

XNNPACK's integer addition takes no summand whose scale is below 2^-10 of the sum's (`src/operators/binary-elementwise-nc.c`);
its delegate in LiteRT leaves such an addition to a slow kernel. A step of such a summand is far below one of the sum, and a
coarser one costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.quantize.annotate import Annotation, is_fused_with_clip
from edgefold.quantize.scheme import QParams

_SUMS: Final = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor})
_LEAST: Final = 2.0**-9  # of the sum's scale: twice the limit


def coarsened(graph: GraphModule, annotation: Annotation, activations: Mapping[str, QParams]) -> dict[str, QParams]:
    """The parameters of all values, in which no summand that is nothing else has a scale below 2^-9 of its sum's.

    Args:
        graph: ATen graph, float32.
        annotation: of the graph.
        activations: by node name, one for all of a group.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    found = dict(activations)
    for group in reversed(annotation.groups):  # a sum before its summands
        readers = [user for name in group for user in nodes[name].users if user.name not in group]
        sums = [found.get(_result(reader).name) for reader in readers if reader.target in _SUMS]
        scales = [params.scale for params in sums if params is not None]
        if group[0] in annotation.fixed or not readers or len(scales) < len(readers):
            continue
        params = found[group[0]]
        if params.scale < _LEAST * max(scales):
            found.update(dict.fromkeys(group, replace(params, scale=_LEAST * max(scales))))
    return found


def _result(node: Node) -> Node:
    """The value that an integer op gives: that of the clip which is fused with it."""
    return next(iter(node.users)) if is_fused_with_clip(node) else node
