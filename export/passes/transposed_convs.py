"""Transposed convolutions as ordinary ones whose channels become pixels.

ONNX Runtime has no integer kernel for a transposed convolution, and a network of integers turns to float at each. But output
place o takes the taps t with o + padding − t = stride · i, input place i, so that places with the same remainder of the stride
(a phase) are an ordinary convolution with every stride-th tap. All phases are one convolution of s · s · N channels, and
moves of whole values put their channels where they belong. Where kernel and stride are equal, that is a convolution of 1×1.
The moves are written as permutations and reshapes with a grid each: `pixel_shuffle` is float in ExecuTorch's delegate between
two conversions, and takes more transpositions in ONNX Runtime and LiteRT.

Each phase has at most ceil(k / s) taps in a dimension. They are aligned by computing up to s − 1 places before the first one,
which are cut off afterwards. Then the kernel has ceil(k / s) taps, of which some are zero where s does not divide k.

A BatchNorm after the layer goes into its weights. What is computed for each number alone (ReLU, hard-swish and so on) is moved
before the shuffle, where the convolution takes it in.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from edgefold.export.passes.infra import GraphPass, clone
from edgefold.quantize.annotate import CLIPS
from edgefold.quantize.graph import add_buffer, constant_of, is_constant

_ATEN = torch.ops.aten
_TRANSPOSED: Final[dict[object, tuple[int, Any]]] = {
    _ATEN.conv_transpose1d.default: (1, _ATEN.conv1d.default),
    _ATEN.conv_transpose2d.input: (2, _ATEN.conv2d.default),
}
_ALONE: Final = CLIPS | {
    _ATEN.hardsigmoid.default,
    _ATEN.hardswish.default,
    _ATEN.leaky_relu.default,
    _ATEN.sigmoid.default,
    _ATEN.silu.default,
    _ATEN.tanh.default,
}
_NORM: Final = _ATEN._native_batch_norm_legit_no_training.default
_ORIGIN: Final = ("nn_module_stack", "stack_trace")


@dataclass(frozen=True, slots=True)
class Phases:
    """One dimension of a transposed convolution as ``stride`` ordinary ones, one a phase.

    ``taps[phase]`` are the original taps at the places of the common kernel, −1 where it is zero. ``before`` and ``after`` are
    the zeros around the input, ``skipped`` the output places to cut off at the front.
    """

    taps: tuple[tuple[int, ...], ...]
    before: int
    after: int
    skipped: int

    @classmethod
    def of(cls, size: int, result: int, kernel: int, stride: int, padding: int) -> Phases:
        """The phases for an input of ``size`` places and an output of ``result``."""

        def left(skipped: int) -> int:
            """The most input places to the left of an output's own that a tap reads."""
            return (kernel - 1 - padding + skipped) // stride

        def places(skipped: int) -> int:
            return left(skipped) + (padding - skipped + stride - 1) // stride + 1

        skipped = min(range(stride), key=places)
        skipped -= stride * min(0, left(skipped))  # the padding may cut off more than the kernel's reach
        before, count = left(skipped), places(skipped)
        taps = tuple(
            tuple(
                tap if 0 <= (tap := phase + padding - skipped + stride * (before - place)) < kernel else -1
                for place in range(count)
            )
            for phase in range(stride)
        )
        needed = -(-(result + skipped) // stride)
        return cls(taps, before, max(0, needed + count - 1 - before - size), skipped)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A transposed convolution, weight (M, N / groups, *kernel)."""

    node: Node
    source: Node
    weight: Node
    bias: Node | None
    stride: tuple[int, ...]
    groups: int
    phases: tuple[Phases, ...]

    @classmethod
    def of(cls, node: Node) -> _Layer | None:
        """The layer that a node is; ``None`` if it is another op, has weights that are computed, or is dilated."""
        if node.op != "call_function" or node.target not in _TRANSPOSED:
            return None
        rank = _TRANSPOSED[node.target][0]
        source, weight, bias, stride, padding, _, groups, dilation = _arguments(node)
        if not _has_constants(node) or node.meta["val"].ndim != rank + 2:
            return None
        if set(_spread(dilation, rank)) != {1}:
            return None
        sizes = (source.meta["val"].shape[2:], node.meta["val"].shape[2:], weight.meta["val"].shape[2:])
        strides = _spread(stride, rank)
        phases = tuple(map(Phases.of, *sizes, strides, _spread(padding, rank)))
        return cls(node, source, weight, bias, strides, groups, phases)


def transposed_convs(graph: GraphModule, keep: frozenset[str] = frozenset()) -> tuple[GraphModule, bool]:
    """Rewrite every transposed convolution with constant weights and without dilation; needs ``meta["val"]``.

    Args:
        graph: ATen graph, float; not changed.
        keep: names of nodes that stay as they are.
    """
    graph = clone(graph)
    modified = False
    for node in list(graph.graph.nodes):  # each is read after the one before has been rewritten
        modified |= _take_in_norm(graph, node)
        layer = _Layer.of(node) if node.name not in keep else None
        if layer is not None:
            _rewrite(graph, layer)
            modified = True
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, modified


def transposed_convs_pass(keep: frozenset[str]) -> GraphPass[GraphModule]:
    """`transposed_convs` for all layers but ``keep``."""

    def none_left(graph: GraphModule) -> str | None:
        names = [node.name for node in graph.graph.nodes if node.name not in keep and _Layer.of(node) is not None]
        return f"'{names[0]}' is left" if names else None

    return GraphPass("transposed-convolutions", lambda graph: transposed_convs(graph, keep), ensures=(none_left,))


def transposed_norms(graph: GraphModule) -> tuple[GraphModule, bool]:
    """Put every BatchNorm after a transposed convolution into its weights, and leave the layers; needs ``meta["val"]``.

    The LiteRT converter does it by itself: no weight that was rounded before would be in its file.
    """
    graph = clone(graph)
    modified = [_take_in_norm(graph, node) for node in list(graph.graph.nodes)]
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.graph.lint()
    graph.recompile()
    return graph, any(modified)


def _no_norm_left(graph: GraphModule) -> str | None:
    names = [node.name for node in graph.graph.nodes if _norm_of_layer(node) is not None]
    return f"'{names[0]}' has a BatchNorm behind it" if names else None


TRANSPOSED_NORMS: GraphPass[GraphModule] = GraphPass("transposed-norms", transposed_norms, ensures=(_no_norm_left,))


class _Rewriter:
    """Makes the nodes of one layer, at the graph's insertion point; each has the shape that its value has."""

    def __init__(self, module: GraphModule, layer: _Layer) -> None:
        self._module, self._layer = module, layer
        self._value: Tensor = layer.node.meta["val"]

    def convolution(self) -> Node:
        """All phases, (batch, N * stride product, *space)."""
        layer = self._layer
        rank, target = _TRANSPOSED[layer.node.target]
        weight, bias = _parameters(self._module, layer)
        source, padding = layer.source, [phase.before for phase in layer.phases]
        if any(phase.before != phase.after for phase in layer.phases):
            around = [side for phase in reversed(layer.phases) for side in (phase.before, phase.after)]
            size = source.meta["val"].shape
            space = (n + phase.before + phase.after for n, phase in zip(size[2:], layer.phases, strict=True))
            source = self._call(_ATEN.constant_pad_nd.default, (source, around), (*size[:2], *space))
            padding = [0] * rank
        weight_node = _buffer(self._module, layer.node, "phases", weight)
        bias_node = None if bias is None else _buffer(self._module, layer.node, "phases_bias", bias)
        space = (
            size + phase.before + phase.after - len(phase.taps[0]) + 1
            for size, phase in zip(layer.source.meta["val"].shape[2:], layer.phases, strict=True)
        )
        arguments = (source, weight_node, bias_node, [1] * rank, padding, [1] * rank, layer.groups)
        return self._call(target, arguments, (self._value.shape[0], len(weight), *space))

    def alone(self, node: Node, source: Node) -> Node:
        """An op on each number alone, on another value."""
        made = self._call(node.target, (source, *node.args[1:]), source.meta["val"].shape, like=node)
        made.kwargs = node.kwargs
        return made

    def pixels(self, node: Node) -> Node:
        """The phases where they belong: (batch, N, *stride * space)."""
        stride, (batch, channels) = self._layer.stride, self._value.shape[:2]
        space = tuple(node.meta["val"].shape[2:])
        if math.prod(stride) == 1:
            return node
        result = tuple(one * size for one, size in zip(stride, space, strict=True))
        if _phases_first(self._layer):
            (height, width), (rows, columns) = space, stride
            row = columns * channels  # what lies together before and after
            node = self._permute(node, (0, 2, 3, 1))
            node = self._reshape(node, batch * height, (width, rows, row))
            node = self._permute(node, (0, 2, 1, 3))
            node = self._reshape(node, batch, (*result, channels))
            return self._permute(node, (0, 3, 1, 2))
        rank = len(stride)
        node = self._reshape(node, batch, (channels, *stride, *space))
        node = self._permute(node, (0, 1, *(place for axis in range(2, 2 + rank) for place in (axis + rank, axis))))
        return self._reshape(node, batch, (channels, *result))

    def _permute(self, node: Node, order: tuple[int, ...]) -> Node:
        shape = node.meta["val"].shape
        return self._call(_ATEN.permute.default, (node, list(order)), [shape[place] for place in order])

    def _reshape(self, node: Node, first: int, rest: tuple[int, ...]) -> Node:
        """The first dimension is left open: it has the batch in it."""
        return self._call(_ATEN.reshape.default, (node, [-1, *rest]), (first, *rest))

    def cut(self, node: Node) -> Node:
        """Without the places that are too many."""
        for axis, phase in enumerate(self._layer.phases, start=2):
            shape, wanted = list(node.meta["val"].shape), self._value.shape[axis]
            if shape[axis] != wanted:
                shape[axis] = wanted
                node = self._call(_ATEN.slice.Tensor, (node, axis, phase.skipped, phase.skipped + wanted), shape)
        return node

    def _call(self, target: Any, arguments: tuple[Any, ...], shape: Sequence[int], like: Node | None = None) -> Node:
        node = self._module.graph.call_function(target, arguments)
        origin = (like or self._layer.node).meta
        node.meta = {key: origin[key] for key in _ORIGIN if key in origin}
        node.meta["val"] = self._value.new_empty(tuple(shape))
        return node


def _rewrite(module: GraphModule, layer: _Layer) -> None:
    chain = _computed_alone(layer.node)
    end = chain[-1] if chain else layer.node
    rewriter = _Rewriter(module, layer)
    with module.graph.inserting_before(end):
        node = rewriter.convolution()
        for one in chain:
            node = rewriter.alone(one, node)
        node = rewriter.cut(rewriter.pixels(node))
    end.replace_all_uses_with(node)


def _parameters(module: GraphModule, layer: _Layer) -> tuple[Tensor, Tensor | None]:
    """Weight (N * phases, M / groups, *kernel) and bias (N * phases,) of the convolution."""
    weight = constant_of(module, layer.weight)
    bias = None if layer.bias is None else constant_of(module, layer.bias)
    copies = math.prod(layer.stride)
    for axis, phase in zip(range(2, 2 * weight.ndim - 2, 2), layer.phases, strict=True):
        weight = functional.pad(weight, (0, 0) * (weight.ndim - 1 - axis) + (0, 1))  # the tap -1
        taps = torch.tensor(phase.taps) % weight.shape[axis]
        shape = (*weight.shape[:axis], *taps.shape, *weight.shape[axis + 1 :])
        weight = weight.index_select(axis, taps.flatten()).reshape(shape)
    # From (groups, M / groups, N / groups, *(phases, taps)); what stands before M / groups becomes one dimension.
    weight = weight.reshape(layer.groups, -1, *weight.shape[1:])
    phases, taps_of = range(3, weight.ndim, 2), range(4, weight.ndim, 2)
    weight = weight.permute(0, 2, *phases, 1, *taps_of)
    if _phases_first(layer):
        weight = weight.movedim(1, len(phases) + 1)
        return weight.flatten(0, 1 + len(phases)), None if bias is None else bias.repeat(copies)
    return weight.flatten(0, 1 + len(phases)), None if bias is None else bias.repeat_interleave(copies)


def _phases_first(layer: _Layer) -> bool:
    """Whether the convolution's channels are (*phases, N) instead of (N, *phases).

    With the channels last, as integer kernels have images, those of a row's phases then lie together, and one transposition of
    long pieces is all that moves. Channel groups need the other order.
    """
    return len(layer.stride) == 2 and layer.groups == 1


def _take_in_norm(module: GraphModule, node: Node) -> bool:
    """Put the BatchNorm after a transposed convolution into its weights, also where the layer stays; whether there is one.

    PT2E does it by itself when it calibrates, and takes away the value that has been annotated.
    """
    norm = _norm_of_layer(node)
    if norm is None:
        return False
    source, weight_node, bias_node, _, _, _, groups, _ = _arguments(node)
    weight = constant_of(module, weight_node)
    scale, shift = norm_of(module, norm)
    scaled = weight.reshape(groups, -1, *weight.shape[1:]) * scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
    bias = shift if bias_node is None else constant_of(module, bias_node) * scale + shift
    with module.graph.inserting_before(node):
        values = (("norm", scaled.flatten(0, 1)), ("norm_bias", bias))
        made = [_buffer(module, node, name, value.to(weight.dtype)) for name, value in values]
    kept = {name: value for name, value in node.kwargs.items() if name not in ("input", "weight", "bias")}
    node.args, node.kwargs = (source, *made, *node.args[3:]), kept
    (result,) = norm.users
    result.replace_all_uses_with(node)
    for one in (result, norm):
        module.graph.erase_node(one)
    return True


def _norm_of_layer(node: Node) -> Node | None:
    return norm_after(node) if node.op == "call_function" and node.target in _TRANSPOSED and _has_constants(node) else None


def _buffer(module: GraphModule, layer: Node, name: str, value: Tensor) -> Node:
    """A constant of a layer, with the shape that it has."""
    node = add_buffer(module, f"{layer.name}_{name}", value)
    node.meta["val"] = layer.meta["val"].new_empty(value.shape)
    return node


def norm_of(module: GraphModule, norm: Node) -> tuple[Tensor, Tensor]:
    """What a BatchNorm multiplies with and adds, float64 (N,)."""
    gain, shift, mean, variance = (None if one is None else constant_of(module, one).double() for one in norm.args[1:5])  # type: ignore[arg-type]  # constants
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.args[6]).rsqrt()  # type: ignore[operator]  # a number
    scale = scale if gain is None else scale * gain
    return scale, (-mean * scale if shift is None else shift - mean * scale)


def norm_after(node: Node) -> Node | None:
    """The BatchNorm that alone reads a node, if its result alone is read."""
    norm = _only_user(node)
    if norm is None or norm.target is not _NORM or not all(one is None or is_constant(one) for one in norm.args[1:5]):
        return None
    result = _only_user(norm)
    return norm if result is not None and result.target is operator.getitem and result.args[1] == 0 else None


def _computed_alone(node: Node) -> list[Node]:
    """The ops on each number alone that follow a node, one after the other, each the only reader of the one before."""
    found: list[Node] = []
    user = _only_user(node)
    while user is not None and user.target in _ALONE:
        found.append(user)
        user = _only_user(user)
    return found


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_constants(node: Node) -> bool:
    weight, bias = _arguments(node)[1:3]
    return is_constant(weight) and (bias is None or is_constant(bias))


def _arguments(node: Node) -> list[Any]:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    values: list[Any] = [*node.args, *(None, None, None, 1, 0, 0, 1, 1)[len(node.args) :]]
    return [node.kwargs.get(name, value) for name, value in zip(names, values, strict=True)]


def _spread(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * count if len(values) == 1 else values)
