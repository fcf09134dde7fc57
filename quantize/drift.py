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
    """Two runtimes on one value: the largest distance in quantization steps, and the share of elements that differ.

    ``begins`` says that the two differ here although they agree on all that goes in.
    """

    first: str
    second: str
    max_steps: int
    share: float
    begins: bool = False

    @property
    def level(self) -> str:
        """``identical``, ``one step`` or ``more``."""
        return "identical" if self.max_steps == 0 else "one step" if self.max_steps == 1 else "more"


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One quantized value. ``begins`` says that drift begins here for some pair of runtimes, which agrees on what goes in."""

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


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The drift map of a network on ``samples`` inputs. ``runtimes`` are in the order of the pairs."""

    runtimes: tuple[str, ...]
    samples: int
    rows: tuple[DriftRow, ...]

    def counts(self, first: str, second: str) -> dict[str, int]:
        """How many values of two runtimes are identical, one step apart, or more."""
        pairs = [d for row in self.rows for d in row.differences if (d.first, d.second) == (first, second)]
        return {level: sum(pair.level == level for pair in pairs) for level in ("identical", "one step", "more")}


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
    drifted: dict[tuple[str, str], set[str]] = {pair: set() for pair in combinations(outputs, 2)}
    for index, name in enumerate(names):
        node = nodes[name]
        step = node.meta[Q].scale
        sources = _quantized_sources(node, place)
        differences = []
        for pair, before in drifted.items():
            steps = _steps(outputs[pair[0]][index], outputs[pair[1]][index], step)
            most = int(steps.max(initial=0))
            differences.append(Difference(*pair, most, float((steps > 0).mean()), begins=bool(most) and not sources & before))
            if most:
                before.add(name)
        cause = _cause(node, differences, classes)
        begins = any(difference.begins for difference in differences)
        rows.append(DriftRow(_layer(node), name, _op(node), tuple(differences), begins, cause))
    return tuple(rows)


def _steps(a: NDArray[Any], b: NDArray[Any], step: float) -> NDArray[np.float64]:
    steps: NDArray[np.float64] = np.rint(np.abs(a.astype(np.float64) - b) / step)
    return steps


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


def _cause(node: Node, differences: Sequence[Difference], classes: Mapping[str, Mapping[str, str]]) -> str:
    if not any(difference.max_steps for difference in differences):
        return ""
    beginning = [difference for difference in differences if difference.begins]
    if not beginning:
        return "passed on"
    involved = {runtime for difference in beginning for runtime in (difference.first, difference.second)}
    producers = {module_path(source) for source in (node, *node.all_input_nodes)}
    for layer in producers:
        found = {runtime: layers[layer] for runtime, layers in classes.items() if layer in layers and runtime in involved}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{runtime}: {numeric}" for runtime, numeric in found.items())
            return f"numeric class of '{layer}' ({told})"
    # The runtime that is in every beginning difference is the one that rounds in another way.
    alone = [name for name in involved if all(name in (one.first, one.second) for one in beginning)]
    return f"rounding of {_op(node)}{f' in {alone[0]}' if len(alone) == 1 else ''}"


def _op(node: Node) -> str:
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    fused = _fused(node)
    return name if fused is None else f"{_op(fused)} + {name}"


def _layer(node: Node) -> str:
    """The module path of the layer that makes a value: of the conv, where an activation is fused into one."""
    fused = _fused(node)
    return module_path(node) if fused is None else _layer(fused)


def _fused(node: Node) -> Node | None:
    """The node before an activation that is fused into it: it has no quantized value of its own."""
    producer = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    return producer if producer is not None and producer.op == "call_function" and Q not in producer.meta else None
