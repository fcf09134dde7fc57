"""Selections of channels whose order travels: a slice, a split or an index, written as whole runs of the stored channels.

After ShuffleNet's concat and shuffle, a split takes channels that are stored in several places. Its result is a selection of
contiguous runs, which nobody needs to sort: the convolution that reads it permutes its weight, and the next concat takes the
runs one by one. So a selection is written as slices of the tensors that hold its channels, looked up through concats and other
slices, and as their concat. What was only concatenated to be cut again is then never built.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgefold.export.lower.nodes import shape_of
from edgefold.export.lower.spaces import Indices
from edgefold.quantize.scheme import Q

aten = torch.ops.aten

MOST_RUNS = 16  # a selection of more runs is one gather
_OPERANDS = 5  # of one concat; XNNPACK takes no more
_ORIGIN = ("nn_module_stack", "stack_trace", Q)


@dataclass(frozen=True, slots=True)
class Run:
    """Positions ``start`` to ``stop`` (exclusive) of a tensor along one axis."""

    tensor: Node
    start: int
    stop: int


class Cutter:
    """Writes selections into a graph; equal runs are cut once."""

    def __init__(self, module: GraphModule) -> None:
        self._graph = module.graph
        self._last_input = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
        self._made: set[Node] = set()
        self._slices: dict[tuple[Node, int, int, int], Node] = {}

    def replace(self, node: Node, tensor: Node, axis: int, positions: Indices) -> bool:
        """Puts the entries of ``tensor`` at ``positions`` along ``axis`` in place of ``node``; False if those are many runs."""
        bounds = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        spans = [(int(positions[one]), int(positions[other - 1]) + 1) for one, other in itertools.pairwise(bounds)]
        runs = merged(run for start, stop in spans for run in sources(Run(tensor, start, stop), axis))
        if len(runs) > MOST_RUNS:
            return False
        with self._graph.inserting_before(node):
            result = self._joined(runs, axis, node)
        node.replace_all_uses_with(result)
        self._made.add(result)
        return True

    def flatten(self, node: Node) -> None:
        """Lets a concat read the runs of its operands, where they were made by `replace`."""
        axis = axis_of(node)
        operands = _operands(node)
        if self._made.isdisjoint(operands):
            return
        ends = ((operand, whole(operand, axis)) for operand in operands)
        runs = merged(run for operand, end in ends for run in (sources(end, axis) if operand in self._made else (end,)))
        if len(runs) <= MOST_RUNS:
            with self._graph.inserting_before(node):
                result = self._joined(runs, axis, node)
            node.replace_all_uses_with(result)

    def _joined(self, runs: Sequence[Run], axis: int, like: Node) -> Node:
        pieces = [self._cut(run, axis) for run in runs]
        while len(pieces) > _OPERANDS:  # the smallest neighbours first
            sizes = [whole(piece, axis).stop for piece in pieces]
            spans = range(len(pieces) - _OPERANDS + 1)
            count = min(_OPERANDS, len(pieces) - _OPERANDS + 1)
            first = min(spans, key=lambda start: sum(sizes[start : start + count]))
            pieces[first : first + count] = [self._concat(pieces[first : first + count], axis, like)]
        return pieces[0] if len(pieces) == 1 else self._concat(pieces, axis, like)

    def _cut(self, run: Run, axis: int) -> Node:
        if run == whole(run.tensor, axis):
            return run.tensor
        key = (run.tensor, axis, run.start, run.stop)
        if key not in self._slices:
            with self._graph.inserting_after(self._last_input if run.tensor.op == "placeholder" else run.tensor):
                piece = self._graph.call_function(aten.slice.Tensor, (run.tensor, axis, run.start, run.stop))
            piece.meta = {name: run.tensor.meta[name] for name in _ORIGIN if name in run.tensor.meta}
            piece.meta["val"] = run.tensor.meta["val"].narrow(axis, run.start, run.stop - run.start)
            self._slices[key] = piece
        return self._slices[key]

    def _concat(self, pieces: Sequence[Node], axis: int, like: Node) -> Node:
        result = self._graph.call_function(aten.cat.default, (list(pieces), axis))
        result.meta = {name: like.meta[name] for name in _ORIGIN if name in like.meta}
        value = like.meta["val"]
        shape = list(value.shape)
        shape[axis] = sum(whole(piece, axis).stop for piece in pieces)
        result.meta["val"] = value.new_empty(shape)
        return result


def sources(run: Run, axis: int) -> Iterator[Run]:
    """The runs of the tensors that a run was put together from, through concats and slices with the same scale."""
    node = run.tensor
    if node.target is aten.cat.default and axis_of(node) == axis:
        operands = _operands(node)
        if all(operand.meta.get(Q) == node.meta.get(Q) for operand in operands):
            offset = 0
            for operand in operands:
                size = whole(operand, axis).stop
                start, stop = max(run.start - offset, 0), min(run.stop - offset, size)
                if start < stop:
                    yield from sources(Run(operand, start, stop), axis)
                offset += size
            return
    if node.target is aten.slice.Tensor and len(node.args) == 4 and node.args[1] == axis:
        source, _, first, _ = node.args
        if isinstance(source, Node) and isinstance(first, int) and source.meta.get(Q) == node.meta.get(Q) and first >= 0:
            yield from sources(Run(source, run.start + first, run.stop + first), axis)
            return
    yield run


def merged(runs: Iterator[Run]) -> list[Run]:
    """Runs that continue each other as one."""
    found: list[Run] = []
    for run in runs:
        if found and found[-1].tensor is run.tensor and found[-1].stop == run.start:
            found[-1] = Run(run.tensor, found[-1].start, run.stop)
        else:
            found.append(run)
    return found


def whole(node: Node, axis: int) -> Run:
    """All of a tensor."""
    shape = shape_of(node)
    assert shape is not None
    return Run(node, 0, shape[axis])


def _operands(node: Node) -> list[Node]:
    """What a concat joins."""
    operands: Any = node.args[0]
    return [operand for operand in operands if isinstance(operand, Node)]


def axis_of(node: Node) -> int:
    """The axis of a concat."""
    shape = shape_of(node)
    assert shape is not None
    axis = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(axis, int)
    return axis % len(shape)
