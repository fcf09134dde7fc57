"""How channel orders travel through a graph.

Every tensor with a channel axis gets a `Layout`. An op of `RULES` either passes the layout of its operand on (`add`
also makes its operands agree), starts a free one (a convolution can write its output channels in any order: it
permutes the rows of its weight), or takes any order in (it permutes the columns). An op without a rule needs its
operands in their natural order and gives its results in theirs. These demands are only collected here;
`edgefold.export.lower.permute` meets as many of them as it can and pays a gather for each of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgefold.export.lower.nodes import is_float, shape_of
from edgefold.export.lower.shuffle import find_shuffles
from edgefold.export.lower.spaces import Indices, Layout, Solver

Value = Layout | list[Layout | None] | None
Rule = Callable[["Flow", Node], Value]


@dataclass(frozen=True, slots=True)
class Reading:
    """The order in which ``user`` reads the output of ``producer``."""

    user: Node
    producer: Node


@dataclass(frozen=True, slots=True)
class Writing:
    """The order in which ``node`` writes its output."""

    node: Node


@dataclass(frozen=True, slots=True)
class Parameter:
    """A constant operand of ``node`` whose dimension ``dim`` follows a tensor's channel order."""

    node: Node
    argument: int
    dim: int
    follows: Reading | Writing


@dataclass(frozen=True, slots=True)
class Cut:
    """A node that is the ``channels`` of ``producer`` as ``reader`` (the node, or the split that it is a part of) reads it."""

    reader: Node
    producer: Node
    channels: Indices


class Flow:
    """The layouts of a graph's tensors, and who must agree with whom.

    Attributes:
        values: the layout under which the users of a node see its output (a list for tuples), None without channels.
        written: the layout in which the node itself writes its output, where that may differ from ``values``.
        read: the layout in which a (user, producer) pair reads, where that may differ from ``values[producer]``.
        parameters: constants that follow an order.
        selected: the channels of each part of a split or slice whose parts are stored in several places.
        cuts: the nodes that take such parts, which are to be written as slices.
        absorbed: the last node of a chain that only renumbers channels -> the tensor that it renumbers.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.solver = Solver()
        self.values: dict[Node, Value] = {}
        self.written: dict[Node, Layout] = {}
        self.read: dict[tuple[Node, Node], Layout] = {}
        self.parameters: list[Parameter] = []
        self.selected: dict[Node, list[Indices]] = {}
        self.cuts: dict[Node, Cut] = {}
        self.shuffles = find_shuffles(module)
        self.absorbed: dict[Node, Node] = {}

    def run(self, rules: dict[object, Rule], pointwise: Rule) -> None:
        """Visits the nodes in execution order."""
        inner = {node for shuffle in self.shuffles.values() for node in shuffle.chain[:-1]}
        for node in self.module.graph.nodes:
            if node.op == "get_attr" or node in inner:
                self.values[node] = None
            elif node in self.shuffles:
                self.values[node] = self._renumber(node)
            elif node.op == "call_function":
                rule = rules.get(node.target)
                if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
                    rule = pointwise
                self.values[node] = self.opaque(node) if rule is None else rule(self, node)
            else:
                self.values[node] = self.opaque(node)

    def _renumber(self, node: Node) -> Layout | None:
        """A channel shuffle moves nothing: its result is its source under other channel numbers."""
        shuffle = self.shuffles[node]
        layout = self.layout(shuffle.source)
        if layout is not None and layout.axis == 1 and layout.repeat == 1:
            self.absorbed[node] = shuffle.source
            return layout.relabelled(shuffle.permutation)
        if layout is not None:
            self.demand_natural(shuffle.chain[0], shuffle.source)
        return self.source(node)

    def layout(self, node: object) -> Layout | None:
        """The layout of a tensor, None if it has no channels that are tracked."""
        value = self.values.get(node) if isinstance(node, Node) else None
        return value if isinstance(value, Layout) else None

    def opaque(self, node: Node) -> Value:
        """An op of which nothing is known."""
        for producer in node.all_input_nodes:
            self.demand_natural(node, producer)
        return self.source(node)

    def demand_natural(self, user: Node, producer: Node) -> None:
        """``user`` needs the channels of ``producer`` in their natural order."""
        layout = self.layout(producer)
        if layout is not None:
            self.read[user, producer] = Layout.natural(layout.channels, layout.axis).repeated(layout.repeat)

    def source(self, node: Node) -> Layout | None:
        """A tensor that is written in natural order; its users may want another one."""
        shape = shape_of(node)
        if shape is None or len(shape) < 2 or not is_float(node):
            return None
        self.written[node] = Layout.natural(shape[1])
        return Layout.free(shape[1])

    def absorb(self, node: Node, argument: int, dim: int, follows: Reading | Writing) -> None:
        """Lets a constant operand, if there is one, follow an order."""
        constant = node.args[argument] if argument < len(node.args) else None
        if isinstance(constant, Node) and constant.op == "get_attr":
            self.parameters.append(Parameter(node, argument, dim, follows))

    def agree(self, node: Node, operands: Sequence[Node], layouts: Sequence[Layout]) -> Layout:
        """Operands that must be read in one order, which is the result's; where there is none, some come through a gather."""
        mark = self.solver.mark()
        if all(self.solver.unify(layouts[0], layout) is None for layout in layouts[1:]):
            return layouts[0]
        self.solver.undo(mark)
        result = Layout.free(layouts[0].size, layouts[0].axis)
        for operand, layout in zip(operands, layouts, strict=True):
            self.read[node, operand] = result.moved(self._axis_of(operand, layout))
        return result

    def _axis_of(self, operand: Node, layout: Layout) -> int:
        """The axis of an operand's own dimensions."""
        own = self.layout(operand)
        return layout.axis if own is None else own.axis

    def reading(self, follows: Reading) -> Layout | None:
        """The layout in which a user reads a tensor."""
        return self.read.get((follows.user, follows.producer), self.layout(follows.producer))

    def writing(self, node: Node) -> Layout | None:
        """The layout in which a node writes its output."""
        return self.written.get(node, self.layout(node))
