"""Widens channels with zero weights to what a runtime's kernels take at a time.

The integer kernels of ONNX Runtime take 16 channels at once and what is left of them one by one, so that a depthwise
convolution of 12 channels can take twice as long as one of 16. A channel that is added has zero weights where it is written and
where it is read: every other number stays what it was, bit by bit.

Channels can be widened where all that hold them are known to be convolutions, linear layers, pooling, element-wise ops or
concatenations. At an input or output, in the groups of a group convolution, or under any other op they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.lower.conv import Conv
from edgefold.export.lower.nodes import is_float, record_values, shape_of
from edgefold.export.passes.infra import clone
from edgefold.export.program import LoweredProgram
from edgefold.quantize.graph import add_buffer, constant_of
from edgefold.quantize.scheme import WEIGHT_SCALE

aten = torch.ops.aten

MULTIPLE: Final = 16
_GROUPS: Final[dict[Any, int]] = {aten.conv1d.default: 6, aten.conv2d.default: 6, aten.convolution.default: 8}  # the argument
_SPATIAL: Final = frozenset(
    {
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.dropout.default,
    }
)
_SIZED: Final = frozenset({aten.view.default, aten.reshape.default})  # the second argument is the shape
_FLAT: Final = _SIZED | {aten.flatten.using_ints, aten.squeeze.dims, aten.unsqueeze.default}
# Ops that make a finite number of zero: a weight of zero removes no NaN.
_POINTWISE: Final = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.relu.default,
        aten.relu6.default,
        aten.clamp.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.prelu.default,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.silu.default,
        aten.hardswish.default,
        aten.gelu.default,
    }
)


def widen(lowered: LoweredProgram, multiple: int = MULTIPLE) -> LoweredProgram:
    """The program with its inner channels widened to multiples of ``multiple``; itself where there is nothing to widen."""
    graph = clone(lowered.program.graph)
    record_values(graph, lowered.program.example_inputs)
    widths = _Widths(graph, multiple)
    if not widths.changes:
        return lowered
    for node in list(graph.graph.nodes):
        widths.rewrite(node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    result = GraphModule(graph, graph.graph)
    for node in result.graph.nodes:
        node.meta.pop("val", None)  # of the old widths
    plan = replace(lowered.plan, wide=True)
    return replace(lowered, program=replace(lowered.program, graph=result), plan=plan)


@dataclass(slots=True, eq=False)
class _Run:
    """Neighbouring channels that have one width in every tensor that holds them."""

    size: int
    fixed: bool = False
    positions: int = 1  # the most that a channel has in any of the tensors
    same: _Run | None = None

    def root(self) -> _Run:
        """The one that stands for all that must be equal."""
        return self if self.same is None else self.same.root()


_Runs = tuple[_Run, ...]


class _Widths:
    """The runs of channels of each tensor, as far as it has any along axis 1."""

    def __init__(self, module: GraphModule, multiple: int) -> None:
        self._module, self._multiple = module, multiple
        self._runs: dict[Node, _Runs] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                continue
            runs = self._visit(node) if node.op == "call_function" else None
            if runs is None:  # an input, an output or an op of which nothing is known
                self._hold(node.all_input_nodes)
                shape = shape_of(node)
                runs = (_Run(shape[1], fixed=True),) if shape is not None and len(shape) > 1 and is_float(node) else ()
            self._runs[node] = runs
            for run in runs:
                run.root().positions = max(run.root().positions, *(shape_of(node) or (1,))[2:], 1)

    @property
    def changes(self) -> bool:
        """Whether anything becomes wider."""
        return any(self._width(run) != run.size for runs in self._runs.values() for run in runs)

    def _width(self, run: _Run) -> int:
        root = run.root()
        # A channel of one position, as gates have them, takes no time; half a step is taken whole, and would double the rest.
        if root.fixed or root.positions == 1 or root.size == self._multiple // 2:
            return root.size
        return -(-root.size // self._multiple) * self._multiple

    def _hold(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            for run in self._runs.get(node, ()):
                run.root().fixed = True

    def _visit(self, node: Node) -> _Runs | None:
        """The runs of the result; ``None`` where the op does not allow other widths."""
        source = node.args[0] if node.args else None
        if node.target is aten.cat.default:
            return self._concatenated(node)
        if not isinstance(source, Node) or source not in self._runs:
            return None
        if (conv := Conv.of(node)) is not None:
            if conv.groups == 1:
                return (_Run(conv.out_channels),)
            same = conv.depthwise and conv.out_channels == conv.in_channels and node.target in _GROUPS and not node.kwargs
            return self._runs[source] if same else None
        if node.target is aten.linear.default:
            shape = shape_of(node)
            known = isinstance(node.args[1], Node) and node.args[1].op == "get_attr" and shape is not None and len(shape) == 2
            return (_Run(shape[1]),) if known and shape is not None else None
        if node.target in _SPATIAL or _is_mean_over_space(node) or _is_pad_of_space(node) or _is_flat(node):
            return self._runs[source]
        return self._pointwise(node) if node.target in _POINTWISE else None

    def _concatenated(self, node: Node) -> _Runs | None:
        parts: Any = node.args[0]
        if node.args[1:] != (1,) or any(part not in self._runs for part in parts):
            return None
        return tuple(run for part in parts for run in self._runs[part])

    def _pointwise(self, node: Node) -> _Runs | None:
        shape = shape_of(node)
        tensors = [one for one in node.all_input_nodes if one.op != "get_attr"]
        if shape is None or len(shape) < 2 or any(len(shape_of(one) or ()) != len(shape) for one in tensors):
            return None
        wide = [one for one in tensors if (shape_of(one) or ())[1] == shape[1]]
        if not wide:
            return None
        self._hold(one for one in tensors if one not in wide)  # one channel for all
        first, *others = (self._runs[one] for one in wide)
        for other in others:
            if [run.size for run in first] != [run.size for run in other]:
                return None
            for one, two in zip(first, other, strict=True):
                _join(one.root(), two.root())
        return first

    def rewrite(self, node: Node) -> None:
        """Gives a node's constants the widths of its tensors."""
        if node.op != "call_function":
            return
        runs = self._runs[node]
        if (conv := Conv.of(node)) is not None:
            if conv.groups == 1:
                self._replace(node, 1, {0: runs, 1: self._runs[conv.source]})
                self._replace(node, 2, {0: runs})
            elif conv.depthwise:
                self._replace(node, 1, {0: runs})
                self._replace(node, 2, {0: runs})
                node.update_arg(_GROUPS[node.target], self._size(runs))
        elif node.target is aten.linear.default:
            source = node.args[0]
            assert isinstance(source, Node)
            if len(shape_of(node) or ()) != 2:  # its features are not along axis 1, whose runs are as they were
                return
            self._replace(node, 1, {0: runs, 1: self._runs[source]})
            self._replace(node, 2, {0: runs})
        elif node.target is aten.prelu.default:
            self._replace(node, 1, {0: runs})
        elif node.target in _SIZED:
            sizes = list(_ints(node.args[1]))
            sizes[1] = self._size(runs)
            node.update_arg(1, sizes)
        elif node.target in _POINTWISE:
            for place, operand in enumerate(node.args):
                axis = len(shape_of(operand) or ()) - len(shape_of(node) or ()) + 1
                if isinstance(operand, Node) and operand.op == "get_attr" and axis >= 0:
                    self._replace(node, place, {axis: runs})
        if WEIGHT_SCALE in node.meta:
            scale = node.meta[WEIGHT_SCALE]
            node.meta[WEIGHT_SCALE] = self._padded(scale, 0, runs, fill=float(scale.max()))

    def _replace(self, node: Node, argument: int, runs: dict[int, _Runs]) -> None:
        old = node.args[argument] if argument < len(node.args) else None
        if not isinstance(old, Node):
            return
        value = before = constant_of(self._module, old)
        for dim, along in runs.items():
            if value.shape[dim] > 1 or sum(run.size for run in along) == 1:
                value = self._padded(value, dim, along)
        if value.shape != before.shape:
            with self._module.graph.inserting_before(node):
                made = add_buffer(self._module, f"{str(old.target).replace('.', '_')}_wide", value)
            made.meta = {key: kept for key, kept in old.meta.items() if key != "val"}
            node.update_arg(argument, made)

    def _padded(self, value: Tensor, dim: int, runs: _Runs, fill: float = 0.0) -> Tensor:
        """The tensor with each run along ``dim`` followed by what it became wider."""
        pieces: list[Tensor] = []
        for run, piece in zip(runs, torch.split(value, [run.size for run in runs], dim), strict=True):
            more = list(value.shape)
            more[dim] = self._width(run) - run.size
            pieces += [piece, value.new_full(more, fill)]
        return torch.cat(pieces, dim)

    def _size(self, runs: _Runs) -> int:
        return sum(self._width(run) for run in runs)


def _join(one: _Run, two: _Run) -> None:
    if one is not two:
        one.fixed |= two.fixed
        one.positions = max(one.positions, two.positions)
        two.same = one


def _ints(value: object) -> Sequence[int]:
    return [value] if isinstance(value, int) else value if isinstance(value, list | tuple) else []


def _is_mean_over_space(node: Node) -> bool:
    rank = len(shape_of(node.args[0]) or ())
    dims = _ints(node.args[1]) if len(node.args) > 1 else []
    return node.target is aten.mean.dim and len(dims) > 0 and all(dim % rank > 1 for dim in dims)


def _is_pad_of_space(node: Node) -> bool:
    return (
        node.target in (aten.constant_pad_nd.default, aten.pad.default)
        and len(_ints(node.args[1])) // 2 <= len(shape_of(node) or ()) - 2
    )


def _is_flat(node: Node) -> bool:
    """Whether a node takes or adds trailing dimensions of size 1."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if node.target not in _FLAT or before is None or after is None:
        return False
    return len(after) > 1 and before[:2] == after[:2] and set(before[2:] + after[2:]) <= {1}
