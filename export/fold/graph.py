"""Folding the captured graph: each region that is one convolution becomes one node.

Regions are tried from the outputs backwards. For one output the regions are tried from the smallest up, and the largest
that folds is taken: it holds whole branch blocks. A few that do not fold in between are passed over, since a block may
be foldable where a part of it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgefold.export.fold.attempt import Folded, attempt, in_batches
from edgefold.export.fold.check import random_like
from edgefold.export.fold.cost import SUMS, node_macs
from edgefold.export.fold.evidence import Evidence, evidence
from edgefold.export.fold.kernel import Kernel
from edgefold.export.fold.progress import Report
from edgefold.export.fold.regions import Region, Search, groups_of, op_name, path_of
from edgefold.export.fold.structure import read_structure
from edgefold.export.fold.watch import proof
from edgefold.quantize.graph import add_buffer

aten = torch.ops.aten

_SHORT = {"_native_batch_norm_legit_no_training": "batch_norm", "native_batch_norm": "batch_norm"}
_PATIENCE = 2  # failures in a row after which an output is left
_ALIKE = 8  # failures of regions that do the same with other weights after which one more is not tried
_SUMS = 16  # failures in a row of partial sums of what failed as a whole after which no more are tried
_PIECES = frozenset({"getitem", "slice", "narrow", "chunk", "split", "split_with_sizes"})  # of the channels
_SCATTERED = "its {} groups would be scattered over the channels"
_CONTRACTIONS = frozenset({"einsum", "tensordot"})  # are no layers, and often a 1x1 convolution


@dataclass(frozen=True, slots=True, eq=False)
class RegionFold:
    """A region that became the node ``conv``."""

    conv: Node
    folded: Folded
    kind: str
    paths: tuple[str, ...]  # of the convolutions that it held
    ops_before: int
    parameters_before: int
    macs_before: int


@dataclass(frozen=True, slots=True, eq=False)
class RegionLeft:
    """A region without a convolution op that may have been one convolution, written out, and is none."""

    output: Node
    kind: str
    reason: str
    ops: int
    parameters: int
    macs: int  # of one sample


@dataclass(frozen=True, slots=True, eq=False)
class RegionFolds:
    """What became of a graph: the folds, for convolution nodes that stay the reason, and what else was tried and stays."""

    folds: list[RegionFold]
    reasons: dict[Node, str]
    left: list[RegionLeft]


def fold_regions(module: GraphModule, unsteady: tuple[str, ...], report: Report, mixes: Callable[[], bool]) -> RegionFolds:
    """Folds the regions of ``module`` in place, outside of the modules named in ``unsteady``.

    ``mixes`` says whether a sample's outputs depend on the other samples of its batch. A graph of one sample cannot tell, and is
    asked where its code takes no other batch.
    """
    _share_zeros(module.graph)
    folder = _Folder(module, Search(module.graph, unsteady), mixes)
    outputs = folder.search.outputs()
    for done, output in enumerate(outputs):
        if output not in folder.gone:
            report(done, len(outputs))
            folder.fold(output)
    left = [_left(region, reason) for region, reason in folder.left if not region.nodes & folder.gone]
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
    return RegionFolds(folder.folds, folder.reasons, left)


def _share_zeros(graph: Graph) -> None:
    """Gives all ``zero_()`` of a buffer's size the first one's result: a buffer that is used again ties no two rows together."""
    first: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        if node.target is aten.zero.default:
            value = node.meta["val"]
            kept = first.setdefault((tuple(value.shape), value.dtype, value.device), node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                graph.erase_node(node)


class _Folder:
    """Folds the outputs of one graph, and remembers what failed: a loop of a thousand terms has a thousand outputs."""

    def __init__(self, module: GraphModule, search: Search, mixes: Callable[[], bool]) -> None:
        self.search = search
        self.folds: list[RegionFold] = []
        self.reasons: dict[Node, str] = {}
        self.left: list[tuple[Region, str]] = []
        self.gone: set[Node] = set()
        self._module, self._mixes = module, mixes
        self._alike: dict[Hashable, list[str]] = {}  # why regions of one signature failed
        self._failed: dict[Node, list[Node]] = {}  # node of a region that failed -> the sums in it that failed too

    def fold(self, output: Node) -> None:
        """Folds the largest region that ends at ``output``, if there is one."""
        sums = self._failed.get(output)
        is_sum = op_name(output) in SUMS
        if sums is not None and is_sum and len(sums) >= _SUMS:
            return
        best, failed = self._largest(output)
        if best is not None:
            region, call, folded = best
            self.folds.append(_replace(self._module, region, call, folded))
            self.gone |= region.nodes
            if sums and is_sum:
                sums.clear()
        elif sums is not None:
            if is_sum and failed:
                sums.append(output)
        elif failed:
            region, reason = failed[0]
            if _is_written_out(region):
                self.left.append((region, reason))
            inside: list[Node] = []
            for node in failed[-1][0].nodes:
                self._failed.setdefault(node, inside)

    def _largest(self, output: Node) -> tuple[tuple[Region, Evidence, Folded] | None, list[tuple[Region, str]]]:
        """The largest region that folds, and those that were tried and do not."""
        best = None
        failed: list[tuple[Region, str]] = []
        in_a_row = 0
        for region in self.search.regions(output):
            if not region.weighted or not region.keeps_dimensions or _is_canonical(region, self.search):
                continue
            alike = self._alike.setdefault(region.signature, [])
            found = alike[-1] if len(alike) >= _ALIKE else _attempt(self._module, region, self._mixes)
            if isinstance(found, str):
                in_a_row += 1
                failed.append((region, found))
                alike.append(found)
                for node in region.convolutions:
                    self.reasons.setdefault(node, found)
                if in_a_row >= _PATIENCE:
                    break
            else:
                best, in_a_row = (region, *found), 0
                alike.clear()
        return best, failed


def _is_written_out(region: Region) -> bool:
    """Whether the plan shows a region that stays: products of images that no convolution op, and no layer, stands for."""
    names = {op_name(node) for node in region.convolutions}
    return not names or (names <= _CONTRACTIONS and region.output.meta["val"].ndim == 4)


def _left(region: Region, reason: str) -> RegionLeft:
    macs = sum(map(node_macs, region.nodes)) // len(region.source.meta["val"])
    return RegionLeft(region.output, _kind(region), reason, len(region.nodes), _parameters(region), macs)


def _is_canonical(region: Region, search: Search) -> bool:
    """Whether the region is one convolution with stored weights already."""
    names = {op_name(node) for node in region.nodes}
    if len(region.nodes) == 2 and "pad" in names:
        (pad,) = (node for node in region.nodes if op_name(node) == "pad")
        sizes, mode = pad.args[1], pad.args[2] if len(pad.args) > 2 else "constant"
        assert isinstance(sizes, list | tuple)
        if mode == "constant" and sizes[::2] == sizes[1::2]:
            return False  # becomes the convolution's own padding
    elif len(region.nodes) != 1:
        return False
    (node,) = region.convolutions
    if op_name(node) in _CONTRACTIONS:
        return False
    return all(other.op == "get_attr" or other in search.dependent for other in node.all_input_nodes)


def _attempt(owner: GraphModule, region: Region, mixes: Callable[[], bool]) -> tuple[Evidence, Folded] | str:
    if piece := _groups_of_a_piece(region):
        return _SCATTERED.format(piece)
    function = region.module(owner)
    value = region.source.meta["val"]
    x = random_like(tuple(value.shape), value.dtype)
    with proof(quick=False) as mode, mode.scope(x) as scope:
        y = function(x)
        field = mode.field_of(scope, y) if scope.sound else None
    if not scope.sound:
        return scope.reason
    if y.ndim != x.ndim or len(y) != len(x) or y.dtype != x.dtype:
        return "its output is not (batch, channels, *space) with the dimensions of its input"
    fixed = region.holds_sizes or not _takes_batches(function, x)
    call = replace(evidence(scope, x, y, field), fixed=fixed)
    found = attempt(in_batches(function, len(x)) if fixed else function, (call,))
    if isinstance(found, str):
        return found
    if fixed and len(x) == 1 and mixes():
        return "the network mixes the samples of a batch, and it may be what mixes them: its code takes one sample only"
    groups = [groups_of(node) for node in region.convolutions]
    if len(groups) == 1 and found.kernel.groups < groups[0] and _is_scattered(found.kernel, groups[0]):
        return _SCATTERED.format(groups[0])
    return call, found


def _groups_of_a_piece(region: Region) -> int:
    """The groups of the region's only convolution, if there are several and it reads a piece of the channels; else 0."""
    if len(region.convolutions) != 1:
        return 0
    (conv,) = region.convolutions
    groups, read = groups_of(conv), conv.all_input_nodes[0].meta["val"]
    others = {op_name(node) for node in region.nodes if node is not conv}
    return groups if groups > 1 and others <= _PIECES and read.shape[1] < region.source.meta["val"].shape[1] else 0


def _is_scattered(kernel: Kernel, groups: int) -> bool:
    """Whether the groups are still apart, in another order of the channels; windows of channels that overlap are not."""
    return len(read_structure(kernel.weight, kernel.groups).groups) >= groups


def _takes_batches(function: GraphModule, x: Tensor) -> bool:
    """Whether the captured code runs on a batch of another size; constants of the batch's size may stand in it."""
    try:
        with torch.no_grad():
            return len(function(torch.cat([x, x[:1]]))) == len(x) + 1
    except (RuntimeError, IndexError):
        return False


def _replace(module: GraphModule, region: Region, call: Evidence, folded: Folded) -> RegionFold:
    kernel, output = folded.kernel, region.output
    kind, parameters = _kind(region), _parameters(region)
    paths = tuple(dict.fromkeys(path_of(node) for node in region.weighted))
    stack = _common_stack(region)
    with module.graph.inserting_before(output):
        conv = insert(module, region.source, kernel, _attribute(stack))
    for node in (conv, *(other for other in conv.all_input_nodes if other is not region.source)):
        node.meta.setdefault("nn_module_stack", stack)
    conv.meta["val"] = output.meta["val"]
    output.replace_all_uses_with(conv)
    for node in reversed(region.in_order):
        module.graph.erase_node(node)
    return RegionFold(conv, folded, kind, paths, len(region.nodes), parameters, call.macs // call.shape[0])


def insert(module: GraphModule, source: Node, kernel: Kernel, name: str) -> Node:
    """Inserts the convolution of ``source`` at the graph's insertion point; a pad stands before it where its border needs one."""
    graph = module.graph
    weight = add_buffer(module, f"{name}_weight", kernel.weight)
    weight.meta["val"] = kernel.weight
    bias: Node | None = None
    if bool(kernel.bias.ne(0).any()):
        bias = add_buffer(module, f"{name}_bias", kernel.bias)
        bias.meta["val"] = kernel.bias
    padding = [before for before, _ in kernel.padding]
    if kernel.mode != "constant" or any(before != after for before, after in kernel.padding):
        sizes = [size for pair in reversed(kernel.padding) for size in pair]
        value = source.meta["val"]
        source = graph.call_function(aten.pad.default, (source, sizes, kernel.mode))
        source.meta["val"] = value.new_empty(
            (*value.shape[:2], *(size + sum(pair) for size, pair in zip(value.shape[2:], kernel.padding, strict=True)))
        )
        padding = [0] * len(padding)
    op = aten.conv1d.default if len(padding) == 1 else aten.conv2d.default
    return graph.call_function(op, (source, weight, bias, list(kernel.stride), padding, list(kernel.dilation), kernel.groups))


def _kind(region: Region) -> str:
    names = (op_name(node) for node in region.in_order)
    return " + ".join(dict.fromkeys(_SHORT.get(name, name) for name in names if name != "getitem"))


def _parameters(region: Region) -> int:
    values = (node.meta.get("val") for node in region.constants if node.op == "get_attr")
    return sum(value.numel() for value in values if isinstance(value, Tensor))


def _common_stack(region: Region) -> dict[str, tuple[str, object]]:
    """The innermost module that holds all convolutions of the region."""
    stacks = [list((node.meta.get("nn_module_stack") or {}).items()) for node in region.weighted]
    common = []
    for level in zip(*stacks, strict=False):
        if any(one != level[0] for one in level):
            break
        common.append(level[0])
    return dict(common)


def _attribute(stack: dict[str, tuple[str, object]]) -> str:
    path = list(stack.values())[-1][0] if stack else ""
    return "".join(letter if letter.isalnum() else "_" for letter in path) or "folded"
