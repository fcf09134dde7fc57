"""Images channels last at the ends of a graph: a 4-D input or output becomes (N, H, W, C), with one permute beside it.

The converters move these permutes into their own layout where they can; inside, the graph stays NCHW.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.scheme import Q

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)

_PERMUTE = torch.ops.aten.permute.default
_CLONE = torch.ops.aten.clone.default


def images_channels_last(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Permute every 4-D float input and output; needs ``meta["val"]`` on placeholders and outputs."""
    graph = clone(graph)
    modified = False
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" and is_image(node):
            _permute_input(graph, node, last[0])
            modified = True
        elif node.op == "output":
            for value in dict.fromkeys(node.all_input_nodes):
                if is_image(value):
                    _permute_output(graph, node, value)
                    modified = True
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def is_image(node: Node) -> bool:
    """Whether a node's value is a 4-D float tensor, which is what the layout option is about."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.is_floating_point()


def _permute_input(graph: GraphModule, node: Node, last: Node) -> None:
    with graph.graph.inserting_after(last):
        permute = graph.graph.call_function(_PERMUTE, (node, list(TO_NCHW)))
    with graph.graph.inserting_after(permute):
        # Without the copy the strides of the permuted view would spread through the graph and break its views.
        copied = graph.graph.call_function(_CLONE, (permute,), {"memory_format": torch.contiguous_format})
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not permute)
    permute.meta, copied.meta = dict(node.meta), dict(node.meta)
    node.meta["val"] = node.meta["val"].permute(TO_NHWC).contiguous()


def _permute_output(graph: GraphModule, output: Node, value: Node) -> None:
    with graph.graph.inserting_before(output):
        permute = graph.graph.call_function(_PERMUTE, (value, list(TO_NHWC)))
    output.replace_input_with(value, permute)
    # What says how a layer is quantized stays with the layer.
    permute.meta = {key: kept for key, kept in value.meta.items() if key in (Q, "nn_module_stack", "stack_trace")}
    permute.meta["val"] = value.meta["val"].permute(TO_NHWC)


def _no_image_at_the_ends(graph: GraphModule) -> str | None:
    for node in graph.graph.nodes:
        if node.op == "placeholder" and is_image(node) and any(user.target is not _PERMUTE for user in node.users):
            return f"image input '{node.name}' is used in NCHW order"
        if node.op == "output":
            for value in node.all_input_nodes:
                if is_image(value) and value.target is not _PERMUTE:
                    return f"image output '{value.name}' is in NCHW order"
    return None


IO_CHANNELS_LAST: GraphPass[GraphModule] = GraphPass("io-channels-last", images_channels_last, ensures=(_no_image_at_the_ends,))
