"""Where the runtimes' INT8 results differ, value by value, and what causes it.

Every quantized value of the network becomes an output of a probe network, which each runtime runs on the same inputs. The
kernels see the same integers as without the extra outputs, since a quantized value is a boundary between kernels anyway.

A value where two runtimes differ although they agree on all of its inputs is where drift begins: its op rounds in different
ways. Everywhere else drift is only passed on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from edgefold.quantize.graph import module_path
from edgefold.quantize.scheme import Q


@dataclass(frozen=True, slots=True)
class Difference:
    """Two runtimes on one value: the largest distance in quantization steps, and the share of elements that differ."""

    first: str
    second: str
    max_steps: int
    share: float


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One quantized value. ``begins`` says that drift begins here: the runtimes agree on what goes in."""

    name: str  # module path
    node: str
    op: str
    differences: tuple[Difference, ...]
    begins: bool
    cause: str

    @property
    def max_steps(self) -> int:
        """The largest distance between any two runtimes."""
        return max((difference.max_steps for difference in self.differences), default=0)


def expose(graph: GraphModule) -> tuple[GraphModule, tuple[str, ...]]:
    """A copy of the graph that returns each of its quantized values, and their names, in graph order."""
    result = copy.deepcopy(graph)
    nodes = [node for node in result.graph.nodes if Q in node.meta and node.op == "call_function"]
    result.graph.output_node().args = (tuple(nodes),)
    result.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    result.recompile()
    return result, tuple(node.name for node in nodes)


def drift_map(
    graph: GraphModule,
    names: Sequence[str],
    outputs: Mapping[str, Sequence[NDArray[Any]]],
    classes: Mapping[str, Mapping[str, str]],
) -> tuple[DriftRow, ...]:
    """Compares the runtimes on every value.

    Args:
        graph: the graph whose values were exposed.
        names: what `expose` returned.
        outputs: by runtime, the values in the order of ``names``, as float32 on their grids.
        classes: by runtime, the numeric class of each layer by module path, as far as it was lowered.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    place = {name: index for index, name in enumerate(names)}
    rows: list[DriftRow] = []
    drifted: set[str] = set()
    for index, name in enumerate(names):
        node = nodes[name]
        step = node.meta[Q].scale
        differences = tuple(
            _difference(first, second, outputs[first][index], outputs[second][index], step)
            for first, second in combinations(outputs, 2)
        )
        differs = any(difference.max_steps for difference in differences)
        if differs:
            drifted.add(name)
        sources = _quantized_sources(node, place)
        begins = differs and not any(source in drifted for source in sources)
        rows.append(DriftRow(module_path(node), name, _op(node), differences, begins, _cause(node, begins, differs, classes)))
    return tuple(rows)


def _difference(first: str, second: str, a: NDArray[Any], b: NDArray[Any], step: float) -> Difference:
    steps = np.rint(np.abs(a.astype(np.float64) - b) / step)
    return Difference(first, second, int(steps.max(initial=0)), float((steps > 0).mean()))


def _quantized_sources(node: Node, place: Mapping[str, int]) -> set[str]:
    """The exposed values that a value is computed from, seen through ops that are fused and have none of their own."""
    found: set[str] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source.name in place:
            found.add(source.name)
        elif source.op == "call_function":
            waiting.extend(source.all_input_nodes)
    return found


def _cause(node: Node, begins: bool, differs: bool, classes: Mapping[str, Mapping[str, str]]) -> str:
    if not differs:
        return ""
    if not begins:
        return "passed on"
    producers = {module_path(source) for source in (node, *node.all_input_nodes)}
    for layer in producers:
        found = {runtime: layers[layer] for runtime, layers in classes.items() if layer in layers}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{runtime}: {numeric}" for runtime, numeric in found.items())
            return f"numeric class of '{layer}' ({told})"
    return f"rounding of {_op(node)}"


def _op(node: Node) -> str:
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    producer = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if producer is not None and producer.op == "call_function" and Q not in producer.meta:
        return f"{_op(producer)} + {name}"
    return name
