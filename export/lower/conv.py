"""A convolution node of an ATen graph, read and written as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.fx import Node

from edgefold.export.lower.nodes import shape_of

aten = torch.ops.aten

CONVOLUTIONS: Final = frozenset(
    {aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.convolution.default}
)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution: weight (N, M / groups, *kernel), input (batch, M, *space), output (batch, N, *space')."""

    node: Node
    source: Node
    weight: Node
    bias: Node | None
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    in_space: tuple[int, ...]
    out_space: tuple[int, ...]

    @classmethod
    def of(cls, node: Node) -> Conv | None:
        """The convolution that a node is, or None.

        None also for a transposed one, for weights that are computed, and for 'same' padding that is not symmetric.
        """
        if node.op != "call_function" or node.target not in CONVOLUTIONS:
            return None
        source, weight, bias, stride, padding, dilation, *rest = _arguments(node)
        shape, space = shape_of(weight), shape_of(source)
        if node.target is aten.convolution.default:
            if rest[0]:
                return None
            groups = rest[2]
        else:
            groups = rest[0]
        if shape is None or space is None or weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            return None
        kernel = shape[2:]
        sized = [_spread(value, len(kernel)) for value in (stride, dilation)]
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(sized[1], kernel, strict=True)]
            if any(one % 2 for one in total):
                return None
            padding = [one // 2 for one in total]
        pads = _spread(padding, len(kernel))
        return cls(
            node=node,
            source=source,
            weight=weight,
            bias=bias,
            in_channels=shape[1] * groups,
            out_channels=shape[0],
            kernel=kernel,
            stride=sized[0],
            padding=pads,
            dilation=sized[1],
            groups=groups,
            in_space=space[2:],
            out_space=(shape_of(node) or ())[2:],
        )

    @property
    def depthwise(self) -> bool:
        """Whether every output channel reads one input channel of its own."""
        return self.groups == self.in_channels and self.groups > 1

    def current(self) -> Conv:
        """The same convolution with the operands that its node has now."""
        source, weight, bias, *_ = _arguments(self.node)
        return replace(self, source=source, weight=weight, bias=bias)


def _arguments(node: Node) -> list[Any]:
    defaults = [None, None, None, 1, 0, 1, 1]
    values: list[Any] = [*node.args, *defaults[len(node.args) :]]
    for place, name in enumerate(("input", "weight", "bias", "stride", "padding", "dilation", "groups")):
        if name in node.kwargs:
            values[place] = node.kwargs[name]
    return values


def _spread(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * count if len(values) == 1 else values)
