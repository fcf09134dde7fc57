"""Folding the captured graph: each region that is one convolution becomes one node.

Regions are tried from the outputs backwards. For one output the regions are tried from the smallest up, and the largest
that folds is taken: it holds whole branch blocks. A few that do not fold in between are passed over, since a block may
be foldable where a part of it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.fold.attempt import Evidence, Folded, attempt, evidence, in_batches
from edgefold.export.fold.check import random_like
from edgefold.export.fold.kernel import Kernel
from edgefold.export.fold.progress import Report
from edgefold.export.fold.regions import Region, Search, groups_of, op_name, path_of
from edgefold.export.fold.watch import proof
from edgefold.quantize.graph import add_buffer

aten = torch.ops.aten

_SHORT = {"_native_batch_norm_legit_no_training": "batch_norm", "native_batch_norm": "batch_norm"}
_PATIENCE = 2  # failures in a row after which an output is left


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


def fold_regions(module: GraphModule, unsteady: tuple[str, ...], report: Report) -> tuple[list[RegionFold], dict[Node, str]]:
    """Folds the regions of ``module`` in place, outside of the modules named in ``unsteady``.

    Returns what was folded, and for convolution nodes that stay the reason why the region around them did not fold.
    """
    search = Search(module.graph, unsteady)
    folds: list[RegionFold] = []
    reasons: dict[Node, str] = {}
    gone: set[Node] = set()
    outputs = search.outputs()
    for done, output in enumerate(outputs):
        if output in gone:
            continue
        report(done, len(outputs))
        best = _largest(module, search, output, reasons)
        if best is not None:
            region, call, folded = best
            folds.append(_replace(module, region, call, folded))
            gone |= region.nodes
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
    return folds, reasons


def _largest(
    module: GraphModule, search: Search, output: Node, reasons: dict[Node, str]
) -> tuple[Region, Evidence, Folded] | None:
    best = None
    failures = 0
    for region in search.regions(output):
        if not region.convolutions or not region.keeps_dimensions or _is_canonical(region, search):
            continue
        found = _attempt(module, region)
        if isinstance(found, str):
            failures += 1
            for node in region.convolutions:
                reasons.setdefault(node, found)
            if failures >= _PATIENCE:
                break
        else:
            best, failures = (region, *found), 0
    return best


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
    return all(other.op == "get_attr" or other in search.dependent for other in node.all_input_nodes)


def _attempt(owner: GraphModule, region: Region) -> tuple[Evidence, Folded] | str:
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
    groups = [groups_of(node) for node in region.convolutions]
    if len(groups) == 1 and found.kernel.groups < groups[0]:
        return f"its {groups[0]} groups would be scattered over the channels"
    return call, found


def _takes_batches(function: GraphModule, x: Tensor) -> bool:
    """Whether the captured code runs on a batch of another size; constants of the batch's size may stand in it."""
    try:
        with torch.no_grad():
            return len(function(torch.cat([x, x[:1]]))) == len(x) + 1
    except (RuntimeError, IndexError):
        return False


def _replace(module: GraphModule, region: Region, call: Evidence, folded: Folded) -> RegionFold:
    kernel, output = folded.kernel, region.output
    parameters = sum(
        value.numel() for node in region.constants if node.op == "get_attr" and isinstance(value := node.meta.get("val"), Tensor)
    )
    ops = (op_name(node) for node in sorted(region.nodes, key=_position(module)))
    kind = " + ".join(dict.fromkeys(_SHORT.get(name, name) for name in ops if name != "getitem"))
    paths = tuple(dict.fromkeys(path_of(node) for node in region.convolutions))
    stack = _common_stack(region)
    with module.graph.inserting_before(output):
        conv = insert(module, region.source, kernel, _attribute(stack))
    for node in (conv, *(other for other in conv.all_input_nodes if other is not region.source)):
        node.meta.setdefault("nn_module_stack", stack)
    conv.meta["val"] = output.meta["val"]
    output.replace_all_uses_with(conv)
    for node in sorted(region.nodes, key=_position(module), reverse=True):
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


def _position(module: GraphModule) -> Callable[[Node], int]:
    index = {node: position for position, node in enumerate(module.graph.nodes)}
    return lambda node: index[node]


def _common_stack(region: Region) -> dict[str, tuple[str, object]]:
    """The innermost module that holds all convolutions of the region."""
    stacks = [list((node.meta.get("nn_module_stack") or {}).items()) for node in region.convolutions]
    common = []
    for level in zip(*stacks, strict=False):
        if any(one != level[0] for one in level):
            break
        common.append(level[0])
    return dict(common)


def _attribute(stack: dict[str, tuple[str, object]]) -> str:
    path = list(stack.values())[-1][0] if stack else ""
    return "".join(letter if letter.isalnum() else "_" for letter in path) or "folded"
