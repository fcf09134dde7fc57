"""Permutes the weights of a graph so that the channel groups of its convolutions lie together, at no cost at run time.

The strided HetConv form groups channels by residue modulo P. A group convolution wants each group contiguous, so the
producers of its input write their channels in another order (the rows of their weights are permuted) and its
consumers read them so (the columns are). `Orders` grants such wishes one after the other; a wish that does not fit
the orders that others have fixed is granted through a gather, and `apply` counts those that are left.

Wishes of a group convolution come first, then the natural order at graph inputs, outputs and barriers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgefold.export.lower.carry import Flow, Parameter, Reading
from edgefold.export.lower.carry_rules import RULES, pointwise
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.cuts import Cutter
from edgefold.export.lower.nodes import shape_of
from edgefold.export.lower.spaces import Indices, Layout
from edgefold.quantize.graph import add_buffer, constant_of
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

_ORIGIN = ("nn_module_stack", "stack_trace", "val", Q)


@dataclass(frozen=True, slots=True)
class Wish:
    """Channel groups of a convolution that are to lie together.

    ``reads[g]`` and ``writes[g]`` are the input and output channels of group ``g``; together they are all channels.
    ``aligned``: group ``g`` must have the same place in input and output (a group convolution; plain ones on slices need not).
    """

    node: Node
    reads: tuple[Indices, ...]
    writes: tuple[Indices, ...]
    aligned: bool = True


class Orders:
    """The channel orders of a graph, which is changed by `apply` only."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._flow = Flow(module)
        self._flow.run(RULES, pointwise)
        self._convs = {node: conv for node in module.graph.nodes if (conv := Conv.of(node)) is not None}
        # Inputs whose channels are not followed come in natural order; what such a convolution reads is fixed here.
        self._apart: dict[Node, Layout] = {}
        for node, conv in self._convs.items():
            layout = self._flow.reading(Reading(node, conv.source))
            if layout is None or layout.axis != 1:
                self._apart[node] = Layout.natural(conv.in_channels)
        for conv in self._convs.values():
            if conv.groups > 1 and not conv.depthwise:
                self.grant(_own_groups(conv))

    def grant(self, wish: Wish, *, limit: int | None = None) -> int | None:
        """Grants a wish and returns the number of elements that gathers must move for it, 0 for none.

        None, and nothing changed, if that is more than ``limit`` elements a sample.
        """
        conv = self._convs[wish.node]
        gather_in, gather_out = math.prod(shape_of(conv.source) or ()), math.prod(shape_of(conv.node) or ())
        variants = [(0, False, False), (gather_in, True, False), (gather_out, False, True), (gather_in + gather_out, True, True)]
        for moved, fresh_in, fresh_out in sorted(variants):
            if limit is not None and moved > limit:
                return None
            reads = Layout.free(conv.in_channels) if fresh_in else self._reads(conv)
            writes = Layout.free(conv.out_channels) if fresh_out else self._flow.writing(conv.node)
            if writes is None or not self._fits(wish, reads, writes):
                continue
            if fresh_in and conv.node in self._apart:
                self._apart[conv.node] = reads
            elif fresh_in:
                self._flow.read[conv.node, conv.source] = reads
            if fresh_out:
                self._flow.written[conv.node] = writes
            return moved
        raise AssertionError(f"{wish.node} takes no group order, not even through gathers")

    def _reads(self, conv: Conv) -> Layout:
        """The layout of the input channels of a convolution, as it reads them."""
        layout = self._apart.get(conv.node) or self._flow.reading(Reading(conv.node, conv.source))
        assert layout is not None
        return layout

    def _fits(self, wish: Wish, reads: Layout, writes: Layout) -> bool:
        if wish.aligned:
            return not isinstance(self._flow.solver.arrange([reads, writes], [wish.reads, wish.writes]), str)
        mark = self._flow.solver.mark()
        for layout, groups in ((reads, wish.reads), (writes, wish.writes)):
            if isinstance(self._flow.solver.arrange([layout], [groups]), str):
                self._flow.solver.undo(mark)
                return False
        return True

    def apply(self) -> int:
        """Rewrites the graph in place and returns the number of gathers that it needed."""
        self._settle()
        for node in self._module.graph.nodes:
            if WEIGHT_SCALE not in node.meta or (layout := self._flow.writing(node)) is None:
                continue
            # Else it orders tokens.
            if layout.axis == (len(shape_of(node) or ()) - 1 if node.target is torch.ops.aten.linear.default else 1):
                node.meta[WEIGHT_SCALE] = node.meta[WEIGHT_SCALE][_tensor(layout.order())]
        self._permute_parameters()
        gathers = self._insert_gathers() + self._write_cuts()
        self._module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self._module.graph.lint()
        self._module.recompile()
        return gathers

    def read_order(self, node: Node) -> Indices:
        """The order in which a convolution reads its input channels."""
        return self._reads(self._convs[node]).order()

    def write_order(self, node: Node) -> Indices:
        """The order in which a convolution writes its output channels."""
        layout = self._flow.writing(node)
        assert layout is not None
        return layout.order()

    def _settle(self) -> None:
        """Closes the gaps between what is written and what is read: the largest tensors first, then what has a fixed order."""
        flow = self._flow
        gaps = [(node, layout, flow.layout(node)) for node, layout in flow.written.items()]
        gaps += [(producer, layout, flow.layout(producer)) for (_, producer), layout in flow.read.items()]
        for _, one, other in sorted(gaps, key=lambda gap: (-math.prod(shape_of(gap[0]) or ()), not gap[1].fixed)):
            if other is not None:
                flow.solver.unify(one, other)  # what cannot be made equal becomes a gather

    def _permute_parameters(self) -> None:
        by_operand: dict[tuple[Node, int], list[Parameter]] = {}
        for parameter in self._flow.parameters:
            by_operand.setdefault((parameter.node, parameter.argument), []).append(parameter)
        for (node, argument), parameters in by_operand.items():
            orders = {parameter.dim: self._order(parameter) for parameter in parameters}
            value = constant_of(self._module, node.args[argument])  # type: ignore[arg-type]  # absorbed operands are nodes
            for dim, order in orders.items():
                value = value.index_select(dim, _tensor(order))
            if any(not _is_natural(order) for order in orders.values()):
                self._replace(node, argument, value)
        for conv in self._convs.values():
            if conv.groups > 1 and not conv.depthwise:
                self._permute_groups(conv)

    def _order(self, parameter: Parameter) -> Indices:
        if not isinstance(parameter.follows, Reading):
            layout = self._flow.writing(parameter.node)
        elif parameter.node in self._convs:
            layout = self._reads(self._convs[parameter.node])
        else:
            layout = self._flow.reading(parameter.follows)
        assert layout is not None
        return layout.order()

    def _permute_groups(self, conv: Conv) -> None:
        """The weight (N, M / G, ...) of a group convolution: rows as written, columns as each group reads them."""
        reads, writes = self.read_order(conv.node), self.write_order(conv.node)
        if _is_natural(reads) and _is_natural(writes):
            return
        rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups
        weight = constant_of(self._module, conv.weight)[_tensor(writes)]
        pieces = [
            weight[place * rows : (place + 1) * rows][:, _tensor(reads[place * columns : (place + 1) * columns] % columns)]
            for place in range(conv.groups)
        ]
        self._replace(conv.node, 1, torch.cat(pieces))

    def _replace(self, node: Node, argument: int, value: Tensor) -> None:
        old = node.args[argument]
        assert isinstance(old, Node)
        with self._module.graph.inserting_before(node):
            constant = add_buffer(self._module, f"{str(old.target).replace('.', '_')}_ordered", value)
        constant.meta["val"] = old.meta.get("val")
        node.update_arg(argument, constant)

    def _insert_gathers(self) -> int:
        made: dict[tuple[Node, bytes], Node] = {}
        for user in list(self._module.graph.nodes):
            instead: dict[Node, Node] = {}
            for producer in user.all_input_nodes:
                wanted, stored = self._flow.reading(Reading(user, producer)), self._stored(producer)
                if wanted is None or stored is None:
                    continue
                positions = np.argsort(stored.order())[wanted.order()]
                tensor = self._tensor_of(producer)
                if not _is_natural(positions):
                    key = (tensor, positions.tobytes())
                    if key not in made:
                        made[key] = self._gather(tensor, positions, stored.axis)
                    tensor = made[key]
                instead[producer] = tensor
            if any(old is not new for old, new in instead.items()):
                # All at once: an operand may take the place of another.
                user.args = map_arg(user.args, functools.partial(_replacement, instead))
            if user in self._apart and not _is_natural(positions := self._apart[user].order()):
                tensor = user.args[0]
                assert isinstance(tensor, Node)
                key = (tensor, positions.tobytes())
                if key not in made:
                    made[key] = self._gather(tensor, positions, 1)
                user.update_arg(0, made[key])
        return len(made)

    def _write_cuts(self) -> int:
        """Writes the selections of channels as slices; returns how many are gathers, since they are scattered too much."""
        cutter, gathers = Cutter(self._module), 0
        for node in list(self._module.graph.nodes) if self._flow.cuts else ():
            cut = self._flow.cuts.get(node)
            if cut is None:
                if node.target is torch.ops.aten.cat.default:
                    cutter.flatten(node)
                continue
            stored, layout = self._flow.reading(Reading(cut.reader, cut.producer)), self._flow.layout(node)
            tensor = cut.reader.args[0]
            assert stored is not None
            assert layout is not None
            assert isinstance(tensor, Node)
            positions = np.argsort(stored.order())[cut.channels[layout.order()]]
            if not cutter.replace(node, tensor, layout.axis, positions):
                gather = self._gather(tensor, positions, layout.axis)
                gather.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(gather)
                gathers += 1
        return gathers

    def _tensor_of(self, node: Node) -> Node:
        while node in self._flow.absorbed:
            node = self._flow.absorbed[node]
        return node

    def _stored(self, node: Node) -> Layout | None:
        """The layout in which the data that a node stands for is stored."""
        if node in self._flow.absorbed:
            below = self._stored(self._flow.absorbed[node])
            assert below is not None
            return below.relabelled(self._flow.shuffles[node].permutation)
        return self._flow.writing(node)

    def _gather(self, tensor: Node, positions: Indices, axis: int) -> Node:
        graph = self._module.graph
        last = tensor if tensor.op != "placeholder" else [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(last):
            index = add_buffer(self._module, f"{tensor.name}_order", _tensor(positions))
        with graph.inserting_after(index):
            gather = graph.call_function(torch.ops.aten.index_select.default, (tensor, axis, index))
        gather.meta = {key: tensor.meta[key] for key in _ORIGIN if key in tensor.meta}
        return gather


def _replacement(instead: dict[Node, Node], operand: Node) -> Node:
    return instead.get(operand, operand)


def _own_groups(conv: Conv) -> Wish:
    rows, columns = np.arange(conv.out_channels), np.arange(conv.in_channels)
    return Wish(conv.node, tuple(np.split(columns, conv.groups)), tuple(np.split(rows, conv.groups)))


def _is_natural(order: Indices) -> bool:
    return bool((order == np.arange(len(order))).all())


def _tensor(order: Sequence[int] | Indices) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(order))
