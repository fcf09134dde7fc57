"""Average pooling that counts its padding, as a padding and a pooling without one, for ExecuTorch.

XNNPACK's pooling leaves padding out of the mean, so that its partitioner refuses torch's default with padding: the op ran outside
of the delegate, and took several times as long as the rest of a small network.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.export.passes.pool_windows import average_options

_ATEN = torch.ops.aten
_AVERAGE: Final = _ATEN.avg_pool2d.default
_PAD: Final = _ATEN.constant_pad_nd.default


def counted_padding(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every pooling of (N, C, H, W) that counts its padding, and whose windows end with the padded image."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_wanted(node)]
    for node in found:
        kernel, stride, (top, left), *_ = average_options(node)
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(_PAD, (node.args[0], [left, left, top, top], 0.0))
        padded.meta = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
        node.args = (padded, list(kernel), list(stride))
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _is_wanted(node: Node) -> bool:
    if node.target is not _AVERAGE or node.kwargs:
        return False
    kernel, _, padding, ceil, counted, divisor = average_options(node)
    return any(padding) and counted and not ceil and divisor in (None, kernel[0] * kernel[1])


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_wanted(node)]
    return f"'{names[0]}' counts its padding" if names else None


COUNTED_PADDING: GraphPass[GraphModule] = GraphPass("counted-padding", counted_padding, ensures=(_none_left,))
