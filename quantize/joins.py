"""Values that lose nearly all of their integers where they are joined with much larger ones on the way to an output.

A concat has one scale. Where boxes of 0…500 are joined with scores of 0…1, a step is two, and every score becomes zero, which an
error over the whole output does not show. Where nothing computes integers of the joined values any more, the concat costs no less
in integers than in float: then each value keeps a scale of its own, is dequantized, and is joined in float.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgefold.quantize.annotate import INTEGER_MOVES, WEIGHTED, is_integer_op
from edgefold.quantize.graph import is_constant, module_path
from edgefold.quantize.paired import walk
from edgefold.quantize.scheme import INT8, JOINED_FLOAT, Q

FEW: Final = 16  # steps: 4 bits, some 26 dB for a value that fills them
_JUDGED: Final = 16  # samples
_ATEN = torch.ops.aten
_JOIN: Final = _ATEN.cat.default


def judged(samples: Sequence[tuple[Tensor, ...]]) -> Sequence[tuple[Tensor, ...]]:
    """The samples that joins are judged by: a few, from all over."""
    return samples[:: max(1, len(samples) // _JUDGED)][:_JUDGED]


def join_in_float(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> tuple[str, ...]:
    """Marks the concats that stay float, and the ops that move their values on; they are those in which a value would keep fewer
    than `FEW` steps, and whose values no integer op reads.

    Args:
        graph: ATen graph, float32; its nodes get `JOINED_FLOAT` in their ``meta``.
        samples: inputs of the graph.

    Returns:
        A sentence for each such value.
    """
    joins = [node for node in graph.graph.nodes if node.target is _JOIN and is_integer_op(node) and _is_last(node)]
    if not joins:
        return ()
    ranges = _Ranges(graph, joins)
    with torch.no_grad():
        for sample in judged(samples):
            ranges.run(*sample)
    found = []
    for join in joins:
        low = min(0.0, *(ranges.low[source] for source in _parts(join)))
        step = (max(0.0, *(ranges.high[source] for source in _parts(join))) - low) / (INT8.levels - 1)
        for position, source in enumerate(join.all_input_nodes):
            span = 0.0 if is_constant(source) else ranges.high[source] - ranges.low[source]
            if 0 < span < FEW * step:
                _mark(join)
                found.append(
                    f"{_joins(join, source, position)} in float, each value with a scale of its own: with one scale for all, "
                    f"{span / step:.1f} steps would be left of it"
                )
    return tuple(found)


def coarse_joins(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> tuple[str, ...]:
    """A sentence for each value that keeps fewer than `FEW` steps in a concat whose value is an output.

    Args:
        graph: with its float parameters, as `edgefold.quantize.calibrate.annotated` makes it.
        samples: inputs of the graph.
    """
    joins = [node for node in graph.graph.nodes if node.target is _JOIN and Q in node.meta and _ends(node)]
    spans: dict[Node, float] = {source: 0.0 for join in joins for source in join.all_input_nodes}

    def add(node: Node, exact: list[Any], _: list[Any]) -> None:
        if node in spans:
            low, high = min(float(value.min()) for value in exact), max(float(value.max()) for value in exact)
            spans[node] = high - low

    if joins and samples:
        walk(graph, judged(samples), after=add)
    found = []
    for join in joins:
        remedy = "return it as an output of its own"
        if _is_last(join):
            remedy += ", or take precision int8 with --io float32, which joins it in float"
        for position, source in enumerate(join.all_input_nodes):
            steps = spans[source] / join.meta[Q].scale
            if 0 < steps < FEW:
                left = f"{steps:.1f} steps are left of it in the output"
                found.append(f"{_joins(join, source, position)} with larger values: {left}; {remedy}")
    return tuple(found)


def steps_of(output: Node) -> float | Tensor | None:
    """The quantization step of a value; of one that is joined in float the step of each element, NaN where it lies on no grid.

    ``None`` where nothing of it lies on a grid.
    """
    if Q in output.meta:
        step: float = output.meta[Q].scale
        return step
    if JOINED_FLOAT not in output.meta:
        return None
    steps = _element_steps(output, {})
    return None if bool(steps.isnan().all()) else steps


class _Ranges(Interpreter):
    """The smallest and largest element of each value that is joined, over all runs."""

    def __init__(self, graph: GraphModule, joins: Iterable[Node]) -> None:
        super().__init__(graph)
        parts = {source for join in joins for source in _parts(join)}
        self.low, self.high = dict.fromkeys(parts, float("inf")), dict.fromkeys(parts, -float("inf"))

    def run_node(self, n: Node) -> Any:
        """Runs one node, and looks at its value."""
        value = super().run_node(n)
        if n in self.low:
            self.low[n] = min(self.low[n], float(value.min()))
            self.high[n] = max(self.high[n], float(value.max()))
        return value


def _parts(join: Node) -> Iterator[Node]:
    return (source for source in join.all_input_nodes if not is_constant(source))


def _is_last(node: Node) -> bool:
    """Whether no integer op reads a value, by itself or moved."""
    return all(not is_integer_op(user) or (_only_moves(user) and _is_last(user)) for user in node.users)


def _only_moves(node: Node) -> bool:
    return node.target in INTEGER_MOVES or node.target is operator.getitem


def _mark(node: Node) -> None:
    node.meta[JOINED_FLOAT] = True
    for user in node.users:
        if is_integer_op(user):
            _mark(user)


def _element_steps(node: Node, known: dict[Node, Any]) -> Any:
    if node not in known:
        if JOINED_FLOAT in node.meta and Q not in node.meta:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: _element_steps(source, known))
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function node's target is a function
        else:
            step = node.meta[Q].scale if Q in node.meta else float("nan")
            known[node] = torch.full(tuple(node.meta["val"].shape), step)
    return known[node]


def _joins(join: Node, source: Node, position: int) -> str:
    return f"'{module_path(join)}' joins '{_name(source)}' (its input {position})"


def _name(node: Node) -> str:
    """The module of the layer that a value comes from, or of the op where several values meet."""
    while node.target not in WEIGHTED and len(node.all_input_nodes) == 1 and node.all_input_nodes[0].op == "call_function":
        node = node.all_input_nodes[0]
    return module_path(node)


def _ends(node: Node) -> bool:
    """Whether a value is an output, by itself or moved."""
    return any(user.op == "output" or (user.meta.get(Q) == node.meta[Q] and _ends(user)) for user in node.users)
