"""Finding affine regions of a captured graph: the parts with one input and one output that may be one convolution.

For an output node v, the region grows backwards. The frontier holds the nodes that the region reads; whenever it is a single
node u, the nodes between u and v are a function of u alone. Growth ends at an op that is not affine, at a node whose value is
used outside, and at the network's inputs.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from edgefold.export.fold.admission import admit, is_random, is_rounded, is_shape_only, written_positions
from edgefold.export.fold.cost import CONVOLUTIONS, SCALES, SUMS, writes_out

_PER_CHANNEL = frozenset(
    {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "mul", "add", "sub", "div", "getitem"}
)
_WITH_SIZES = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "_reshape_alias", "expand", "as_strided", "unflatten", "repeat", "col2im"),
        *("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "arange"),
    }
)


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes that compute ``output`` from ``source``, without constants."""

    source: Node
    output: Node
    nodes: frozenset[Node]

    @cached_property
    def keeps_dimensions(self) -> bool:
        """Whether output and source are batches of equal size with equally many spatial dimensions."""
        source, output = self.source.meta["val"], self.output.meta["val"]
        return source.ndim == output.ndim and len(source) == len(output)

    @cached_property
    def convolutions(self) -> tuple[Node, ...]:
        """The nodes that multiply by a weight, in the order of the graph."""
        return tuple(node for node in self.in_order if op_name(node) in CONVOLUTIONS)

    @cached_property
    def weighted(self) -> tuple[Node, ...]:
        """The convolutions, or where there are none the products of a convolution that may be written out; empty otherwise."""
        if self.convolutions:
            return self.convolutions
        scales = tuple(node for node in self.in_order if op_name(node) in SCALES)
        sums = sum(op_name(node) in SUMS and len(self._reads(node)) > 1 for node in self.nodes)
        reductions = sum(op_name(node) == "sum" for node in self.nodes)
        return scales if writes_out(len(scales), sums, reductions) else ()

    @cached_property
    def in_order(self) -> tuple[Node, ...]:
        """The nodes in the order of the graph."""
        return tuple(sorted(self.nodes))

    @cached_property
    def signature(self) -> Hashable:
        """Equal for regions that do the same with weights of the same shapes: the rows of a loop, say."""
        order = {node: index for index, node in enumerate((self.source, *self.in_order))}
        return tuple(
            (op_name(node), _shape(node), tuple(order.get(other, _shape(other)) for other in node.all_input_nodes))
            for node in self.in_order
        )

    def _reads(self, node: Node) -> list[Node]:
        return [other for other in node.all_input_nodes if other is self.source or other in self.nodes]

    @cached_property
    def holds_sizes(self) -> bool:
        """Whether the captured code holds the sizes of its input as numbers, and so takes no others."""
        return bool(self._likes) or any(
            op_name(node) in _WITH_SIZES and not _is_scalar(node) for node in (*self.nodes, *self.constants)
        )

    def module(self, owner: GraphModule) -> GraphModule:
        """The region as a module of one input; it shares the tensors of ``owner``."""
        graph = Graph()
        copies = {self.source: graph.placeholder("x")}
        for node in sorted(self.nodes | self.constants | self._likes):
            if node in self._likes:
                value = node.meta["val"]
                options = {"dtype": value.dtype}
                copies[node] = graph.call_function(torch.ops.aten.zeros.default, (list(value.shape),), options)
            else:
                copies[node] = graph.node_copy(node, lambda other: copies[other])
        graph.output(copies[self.output])
        return GraphModule(owner, graph)

    @cached_property
    def constants(self) -> frozenset[Node]:
        """The nodes outside that the region reads, other than its source, with all that they are computed from."""
        return self._outside[0]

    @cached_property
    def _likes(self) -> frozenset[Node]:
        """The nodes outside of which the region reads shape and type only: those of ``zeros_like``, say."""
        return self._outside[1]

    @cached_property
    def _outside(self) -> tuple[frozenset[Node], frozenset[Node]]:
        found: set[Node] = set()
        likes: set[Node] = set()
        stack = list(self.nodes)
        while stack:
            node = stack.pop()
            shape_only = isinstance(node.target, OpOverload) and is_shape_only(node.target)
            for other in node.all_input_nodes:
                if other is self.source or other in self.nodes or other in found:
                    continue
                if shape_only:
                    likes.add(other)
                else:
                    found.add(other)
                    stack.append(other)
        return frozenset(found), frozenset(likes - found)


class Search:
    """The regions of one graph."""

    def __init__(self, graph: Graph, unsteady: tuple[str, ...]) -> None:
        self.index = {node: position for position, node in enumerate(graph.nodes)}
        self.dependent = _dependent(graph)
        self._affine = {node for node in self.dependent if _is_affine(node, self.dependent) and not _is_inside(node, unsteady)}

    def outputs(self) -> list[Node]:
        """The nodes at which a region may end, last first."""
        found = (node for node in self.index if node in self._affine and _is_image(node))
        return sorted(found, key=lambda node: -self.index[node])

    def regions(self, output: Node) -> Iterator[Region]:
        """The regions that end at ``output``, from the smallest to the largest."""
        inside = {output}
        frontier = self._inputs(output)
        heap = [-self.index[node] for node in frontier]
        heapq.heapify(heap)
        by_index = {self.index[node]: node for node in frontier}
        while heap:
            node = by_index[-heap[0]]
            if len(heap) == 1 and _is_image(node) and not self._splits_a_scale(node):
                yield Region(node, output, frozenset(inside))
            if node not in self._affine or any(user not in inside for user in node.users):
                return
            heapq.heappop(heap)
            inside.add(node)
            for other in self._inputs(node):
                position = self.index[other]
                if position not in by_index:
                    by_index[position] = other
                    heapq.heappush(heap, -position)

    def _inputs(self, node: Node) -> list[Node]:
        return [other for other in node.all_input_nodes if other in self.dependent]

    def _splits_a_scale(self, node: Node) -> bool:
        """Whether a cut at ``node`` parts a convolution from the per-channel op that belongs to it."""
        users = list(node.users)
        if node not in self._affine or len(users) != 1 or op_name(users[0]) not in _PER_CHANNEL:
            return False
        return all(other is node or other not in self.dependent for other in users[0].all_input_nodes)


def op_name(node: Node) -> str:
    """The name of the op that a node calls, without namespace and overload; empty for other nodes."""
    if node.op != "call_function":
        return ""
    return node.target._opname if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", "")


def groups_of(node: Node) -> int:
    """The groups of a convolution node; 1 for other nodes."""
    position = {"conv1d": 6, "conv2d": 6, "convolution": 8}.get(op_name(node), len(node.args))
    groups = node.args[position] if len(node.args) > position else 1
    assert isinstance(groups, int)
    return groups


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.ndim


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def path_of(node: Node) -> str:
    """The path of the module that a node comes from; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _dependent(graph: Graph) -> set[Node]:
    """The nodes whose values depend on the inputs of the graph."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            found.add(node)
        elif node.op not in ("get_attr", "output"):
            shape_only = isinstance(node.target, OpOverload) and is_shape_only(node.target)
            if not shape_only and any(other in found for other in node.all_input_nodes):
                found.add(node)
    return found


def _is_affine(node: Node, dependent: set[Node]) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or is_random(node.target) or written_positions(node.target):
        return False
    if _rounds(node):
        return False
    return admit(node.target, node.args, dict(node.kwargs), lambda value: isinstance(value, Node) and value in dependent) is None


def _rounds(node: Node) -> bool:
    """Whether the value has a narrower floating type than one that it is computed from."""
    value = node.meta.get("val")
    sources = [other.meta.get("val") for other in node.all_input_nodes]
    return isinstance(value, Tensor) and any(
        isinstance(one, Tensor) and one.is_floating_point() and value.is_floating_point() and is_rounded(value.dtype, one.dtype)
        for one in sources
    )


def _is_inside(node: Node, names: tuple[str, ...]) -> bool:
    """Whether a node comes from one of the modules; from every module, if a name is empty."""
    stack = node.meta.get("nn_module_stack") or {}
    return "" in names or any(path in names for path, *_ in stack.values())


def _is_image(node: Node) -> bool:
    """Whether the value is (batch, channels, *space) with one or two spatial dimensions."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim in (3, 4) and value.dtype in (torch.float32, torch.float64, torch.float16)
