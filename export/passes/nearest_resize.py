"""Nearest-neighbour resizing as a choice of rows and columns, for TFLite.

The converter writes RESIZE_NEAREST_NEIGHBOR with half-pixel centres, which is what torch computes only where the size is
multiplied by a whole number: 2 rows to 5 gave other rows.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.graph import add_buffer

_ATEN: Final = torch.ops.aten
_RESIZE: Final = frozenset(
    {
        *(_ATEN.upsample_nearest1d.vec, _ATEN.upsample_nearest1d.default),
        *(_ATEN.upsample_nearest2d.vec, _ATEN.upsample_nearest2d.default),
        *(_ATEN._upsample_nearest_exact1d.vec, _ATEN._upsample_nearest_exact2d.vec),
    }
)
_PICK: Final = _ATEN.index_select.default


def nearest_resize(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Rewrite every resizing of (N, C, L) or (N, C, H, W) by other than whole numbers; needs ``meta["val"]``."""
    graph = clone(graph)
    found = [node for node in graph.graph.nodes if _is_wanted(node)]
    for node in found:
        value = node.args[0]
        assert isinstance(value, Node)
        with graph.graph.inserting_before(node):
            for axis, places in enumerate(_places(node), start=2):
                if places.tolist() == list(range(value.meta["val"].shape[axis])):
                    continue
                index = add_buffer(graph, f"{node.name}_places", places)
                picked = graph.graph.call_function(_PICK, (value, axis, index))
                shape = list(value.meta["val"].shape)
                shape[axis] = len(places)
                picked.meta = {**node.meta, "val": node.meta["val"].new_empty(shape)}
                value = picked
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph, bool(found)


def _places(node: Node) -> list[Tensor]:
    """Which row, and which column, each one of the result is a copy of: int64, by the op itself."""
    source, target = node.args[0], node.target
    assert isinstance(source, Node)
    assert callable(target)
    sizes = source.meta["val"].shape[2:]
    found = []
    for axis, size in enumerate(sizes, start=2):
        shape = [1] * (2 + len(sizes))
        shape[axis] = size
        numbers = torch.arange(size, dtype=torch.float32).reshape(shape).expand(1, 1, *sizes)
        copied = target(numbers, *node.args[1:], **node.kwargs).movedim(axis, -1)
        found.append(copied.reshape(-1, copied.shape[-1])[0].long())
    return found


def _is_wanted(node: Node) -> bool:
    source = node.args[0] if node.target in _RESIZE else None
    if not isinstance(source, Node):
        return False
    sizes = zip(node.meta["val"].shape[2:], source.meta["val"].shape[2:], strict=True)
    return any(after % before for after, before in sizes)


def _none_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _is_wanted(node)]
    return f"'{names[0]}' resizes by other than whole numbers" if names else None


NEAREST_RESIZE: GraphPass[GraphModule] = GraphPass("nearest-resize", nearest_resize, ensures=(_none_left,))
