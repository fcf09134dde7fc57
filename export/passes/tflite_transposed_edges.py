"""Transposed convolutions with the two paddings that TFLite has: "valid", and "same" where it cuts off as much on both sides.

LiteRT's converter fails at all others, 3×3 with stride 2 and one row cut off at the front among them. Each becomes a "valid" one
without a padding, of which the result's part is cut out. Where the result reaches further (an output padding above the padding),
zeros are added behind, and the bias after them. TFLite's op has no dilation either: the zeros between the taps become weights.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer, constant_of, is_constant
from edgefold.quantize.scheme import WEIGHT_SCALE, Q

_ATEN: Final = torch.ops.aten
_RANKS: Final[dict[object, int]] = {_ATEN.conv_transpose1d.default: 1, _ATEN.conv_transpose2d.input: 2}
_DEFAULTS: Final = (None, 1, 0, 0, 1, 1)  # bias, stride, padding, output padding, groups, dilation


def transposed_edges(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every transposed convolution of constant weights with another padding or a dilation; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_uneven(node)]
    for node in found:
        _rewrite(graph, node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_uneven(node: Node) -> bool:
    if node.op != "call_function" or node.target not in _RANKS or not is_constant(node.args[1]):
        return False
    _, stride, padding, more, _, dilation = _options(node)
    kernel = node.args[1].meta["val"].shape[2:]
    if set(dilation) != {1}:
        return True
    valid = not any(padding) and not any(more)
    same = not any(more) and all(2 * p == k - s for p, k, s in zip(padding, kernel, stride, strict=True))
    return not (valid or same)


def _options(node: Node) -> tuple[Any, list[int], list[int], list[int], int, list[int]]:
    """Bias, stride, padding, output padding, groups and dilation; one number a dimension."""
    rank = _RANKS[node.target]
    values: list[Any] = [*node.args[2:], *_DEFAULTS[len(node.args) - 2 :]]
    bias, stride, padding, more, groups, dilation = values

    def spread(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * (rank // len(values))

    return bias, spread(stride), spread(padding), spread(more), int(groups), spread(dilation)


def _rewrite(module: GraphModule, node: Node) -> None:
    bias, stride, padding, _, groups, dilation = _options(node)
    rank, result = len(stride), node.meta["val"].shape
    source, weight = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    taps = _spread_taps(constant_of(module, weight), dilation)
    sizes = source.meta["val"].shape[2:]
    whole = [(size - 1) * s + k for size, s, k in zip(sizes, stride, taps.shape[2:], strict=True)]
    behind = [max(0, p + size - there) for p, size, there in zip(padding, result[2:], whole, strict=True)]
    late = bias if any(behind) else None  # what lies behind is the bias alone
    kept = {key: value for key, value in node.meta.items() if key not in (Q, WEIGHT_SCALE)}

    def call(target: Any, *args: Any) -> Node:
        made = module.graph.call_function(target, args)
        with torch.no_grad():
            values = [argument.meta["val"] if isinstance(argument, Node) else argument for argument in args]
            made.meta = {**kept, "val": target(*values)}
        return made

    with module.graph.inserting_before(node):
        if set(dilation) != {1}:
            weight = add_buffer(module, f"{node.name}_taps", taps)
            weight.meta["val"] = source.meta["val"].new_empty(taps.shape)
        early = None if late is not None else bias
        value = call(node.target, source, weight, early, stride, [0] * rank, [0] * rank, groups, [1] * rank)
        if WEIGHT_SCALE in node.meta:
            value.meta[WEIGHT_SCALE] = node.meta[WEIGHT_SCALE]
        for axis, (first, size, there) in enumerate(zip(padding, result[2:], whole, strict=True), start=2):
            if first or there > size:
                value = call(_ATEN.slice.Tensor, value, axis, first, min(first + size, there))
        if any(behind):
            around = [side for count in reversed(behind) for side in (0, count)]
            value = call(_ATEN.constant_pad_nd.default, value, around, 0.0)
        if late is not None:
            shaped = add_buffer(module, f"{node.name}_bias", constant_of(module, late).reshape(1, -1, *[1] * rank))
            shaped.meta["val"] = source.meta["val"].new_empty((1, result[1], *[1] * rank))
            value = call(_ATEN.add.Tensor, value, shaped)
    if Q in node.meta:
        value.meta[Q] = node.meta[Q]
    node.replace_all_uses_with(value)


def _spread_taps(weight: Tensor, dilation: list[int]) -> Tensor:
    """The kernel (M, N / groups, *kernel) with the zeros of a dilation between its taps."""
    kernel = weight.shape[2:]
    spread = weight.new_zeros((*weight.shape[:2], *((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))))
    spread[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return spread


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_uneven(node)]
    return f"'{names[0]}' has a padding that TFLite lacks" if names else None


TRANSPOSED_EDGES: GraphPass[GraphModule] = GraphPass("tflite-transposed-edges", transposed_edges, ensures=(_none_left,))
