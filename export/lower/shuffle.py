"""Finds the op chains that do nothing but permute channels, such as ShuffleNet's reshape, transpose, flatten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgefold.export.lower.spaces import Indices
from edgefold.quantize.graph import constant_of

aten = torch.ops.aten

# Ops that only move elements.
_MOVES: Final = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.transpose.int,
        aten.permute.default,
        aten.contiguous.default,
        aten.index_select.default,
        aten.index.Tensor,
        aten.channel_shuffle.default,
        aten.native_channel_shuffle.default,
    }
)


@dataclass(frozen=True, slots=True)
class Shuffle:
    """``chain[-1][:, c] = source[:, permutation[c]]``, computed by the nodes of ``chain`` and used by nobody in between."""

    source: Node
    chain: tuple[Node, ...]
    permutation: Indices


def find_shuffles(module: GraphModule) -> dict[Node, Shuffle]:
    """The channel (dimension 1) shuffles of a graph, by their last node; chains are as long as possible."""
    found: dict[Node, Shuffle] = {}
    for node in reversed(list(module.graph.nodes)):
        if any(node in shuffle.chain for shuffle in found.values()):
            continue
        chain: list[Node] = []
        best: Shuffle | None = None
        step: object = node
        while isinstance(step, Node) and step.target in _MOVES and (not chain or len(step.users) == 1):
            chain.insert(0, step)
            step = step.args[0]
            if isinstance(step, Node):
                permutation = _permutation(module, step, chain)
                if permutation is not None:
                    best = Shuffle(step, tuple(chain), permutation)
        if best is not None:
            found[node] = best
    return found


def _permutation(module: GraphModule, source: Node, chain: list[Node]) -> Indices | None:
    """The permutation that a chain is, found by running it on the numbers of the elements."""
    before, after = source.meta.get("val"), chain[-1].meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.shape != after.shape or before.ndim < 2:
        return None
    if any(operand.op != "get_attr" for node in chain for operand in node.all_input_nodes if operand is not node.args[0]):
        return None  # an index that is computed
    numbers = torch.arange(before.numel()).reshape(before.shape)
    moved = numbers
    for node in chain:
        target: Any = node.target
        rest = map_arg(node.args[1:], lambda item: constant_of(module, item))
        moved = target(moved, *rest, **node.kwargs)
    if not moved.numel():
        return None
    stride = numbers[0].numel() // numbers.shape[1]
    first = moved[0].reshape(numbers.shape[1], -1)[:, 0] // stride
    permutation = np.asarray(first)
    if not np.array_equal(np.sort(permutation), np.arange(numbers.shape[1])):
        return None
    return permutation if torch.equal(moved, numbers[:, first]) else None
