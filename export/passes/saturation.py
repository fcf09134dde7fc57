"""Clips that quantization does by itself.

A value that is quantized right after a clip is saturated at the ends of its integers. When the bounds of the clip are these ends
(Q(low) = qmin and Q(high) = qmax) the clip says nothing more, and goes: Q(clip(x)) = Q(x). The layer before it then carries
the parameters. Where only the upper bound is one and the lower is 0, what is left is a ReLU. Backends that fuse only some clips
would leave the others as ops of their own.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import is_fused_with_clip
from edgefold.quantize.scheme import Q, QParams

_ATEN = torch.ops.aten
_DEFAULTS: Final[dict[object, tuple[float, float]]] = {
    _ATEN.relu.default: (0.0, math.inf),
    _ATEN.relu6.default: (0.0, 6.0),
    _ATEN.hardtanh.default: (-1.0, 1.0),
}
_CLIPPED: Final = frozenset({_ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.clamp.default})
_BOUNDED: Final = frozenset({_ATEN.clamp.default, _ATEN.clamp_min.default, _ATEN.hardtanh.default})


def saturation(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Drop the clips that the integers' ends make, after a layer or an addition that has no other reader."""
    graph = clone(graph)
    modified = False
    for node in list(graph.graph.nodes):
        if _is_redundant(node):
            source = node.args[0]
            source.meta[Q] = node.meta[Q]
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            modified = True
        elif _is_relu(node):
            node.target, node.args, node.kwargs = _ATEN.relu.default, node.args[:1], {}
            modified = True
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def _is_redundant(node: Node) -> bool:
    params: QParams | None = node.meta.get(Q)
    source = node.args[0] if node.args else None
    if params is None or not isinstance(source, Node) or not is_fused_with_clip(source):
        return False
    low, high = _bounds(node)
    return _integer(low, params) == params.qmin and _integer(high, params) == params.qmax


def _is_relu(node: Node) -> bool:
    """Whether a clip computes a ReLU on signed integers, since its upper bound is their end."""
    params: QParams | None = node.meta.get(Q)
    if params is None or node.target not in _CLIPPED:
        return False
    low, high = _bounds(node)
    return low == 0.0 and _integer(low, params) != params.qmin and _integer(high, params) == params.qmax


def _bounds(node: Node) -> tuple[float, float]:
    low, high = _DEFAULTS.get(node.target, (-math.inf, math.inf))
    if node.target in _BOUNDED:
        given = [*node.args[1:3], None, None]
        low, high = (default if value is None else float(value) for value, default in zip(given[:2], (low, high), strict=True))  # type: ignore[arg-type]  # numbers in ATen
    return low, high


def _integer(value: float, params: QParams) -> int:
    if math.isinf(value):
        return params.qmax if value > 0 else params.qmin
    return min(max(round(value / params.scale) + params.zero_point, params.qmin), params.qmax)


def split_clips(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Let a layer have integers of its own before a clip without 0, which ExecuTorch's delegate does not fuse.

    They are those of the clip: what they saturate lies outside its bounds.
    """
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_fused_without_zero(node)]
    for node in found:
        node.args[0].meta[Q] = node.meta[Q]
    return graph, bool(found)


def _is_fused_without_zero(node: Node) -> bool:
    source = node.args[0] if node.args else None
    if node.target not in _BOUNDED or Q not in node.meta or not isinstance(source, Node) or Q in source.meta:
        return False
    low, high = _bounds(node)
    return is_fused_with_clip(source) and (low > 0 or high < 0)


def _none_fused(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_fused_without_zero(node)]
    return f"clip '{names[0]}' is fused" if names else None


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_redundant(node) or _is_relu(node)]
    return f"clip '{names[0]}' says what saturation says" if names else None


SATURATION: GraphPass[GraphModule] = GraphPass("saturation", saturation, ensures=(_none_left,))
SPLIT_CLIPS: GraphPass[GraphModule] = GraphPass("split-clips", split_clips, ensures=(_none_fused,))
