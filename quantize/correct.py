"""Repairs of a network for INT8: cross-layer equalization before calibration, bias correction after it.

Both are of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

**Equalization** (section 4.1). Where one conv or linear feeds the next through a function f with f(s x) = s f(x) for s > 0,
output channel i of the first is divided by s_i and input channel i of the second multiplied by it, which changes nothing in
float. With

    s_i = sqrt(r1_i / r2_i),    r1, r2 the largest magnitudes of the channel's weights in the first and the second layer,

both have the same range in each channel. f may be the identity, ReLU, leaky ReLU, PReLU or a pooling. It may not be ReLU6 or
hard-swish: their corners would have to move with s_i. Weights tell little of a channel's values where its bias is large: s_i
is kept from making such a channel larger than all others, whose integers it would take.

**Bias correction** (section 4.2, the empirical form). Rounding a layer's weights shifts the mean of its output. In one walk
through the network, each layer's bias is moved by the mean difference per output channel between the float layer and the
quantized one, the latter on inputs that come from layers corrected before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgefold.quantize.annotate import INTEGER_MOVES, WEIGHTED
from edgefold.quantize.calibrate import ScaleTable, annotated
from edgefold.quantize.graph import add_buffer, constant_of, groups_of, is_constant, module_path
from edgefold.quantize.judging import is_kept
from edgefold.quantize.paired import correct_bias, has_bias, walk

_ATEN = torch.ops.aten
_HOMOGENEOUS: Final = frozenset(
    {
        _ATEN.adaptive_avg_pool2d.default,
        _ATEN.avg_pool2d.default,
        _ATEN.leaky_relu.default,
        _ATEN.max_pool2d.default,
        _ATEN.prelu.default,
        _ATEN.relu.default,
    }
)

_MAY_MOVE_CHANNELS: Final = INTEGER_MOVES | {_ATEN.constant_pad_nd.default, _ATEN.flip.default, _ATEN.mean.dim, _ATEN.pad.default}
_LOOKED: Final = 16  # samples


@dataclass(frozen=True, slots=True)
class EqualizedPair:
    """Two layers that follow each other, by module path; ``reason`` says why they were left alone (empty: equalized)."""

    first: str
    second: str
    reason: str = ""


def correct_biases(graph: GraphModule, table: ScaleTable, samples: Sequence[tuple[Tensor, ...]]) -> ScaleTable:
    """The table with corrected biases, or the table itself where held-out samples are clearly worse with them.

    Args:
        graph: the canonical graph of the table.
        table: its scales.
        samples: calibration inputs; every other one is used to correct, the rest to judge.
    """
    table = replace(table, biases={}) if table.biases else table  # the differences are to the float network's own
    carrying = annotated(graph, table)
    used, held_out = (samples[::2], samples[1::2]) if len(samples) > 1 else (samples, samples)
    biases: dict[str, Tensor] = {}

    def correct(node: Node, exact: list[Any], quantized: list[Any]) -> None:
        if has_bias(node):
            biases[node.name] = correct_bias(carrying, node, exact, quantized)

    walk(carrying, used, before=correct)
    corrected = replace(table, biases=biases)
    return corrected if is_kept(graph, corrected, table, held_out) else table


def equalize(graph: GraphModule, samples: Sequence[tuple[Tensor, ...]] = ()) -> tuple[GraphModule, tuple[EqualizedPair, ...]]:
    """A copy of the canonical graph with equalized layers, and what was done with each pair.

    Args:
        graph: ATen graph, float32.
        samples: inputs of the graph, some of which tell how large the channels of a layer are.
    """
    result = copy.deepcopy(graph)
    pairs = []
    sizes = _Sizes(result)
    with torch.no_grad():
        for sample in samples[:: max(1, len(samples) // _LOOKED)][:_LOOKED]:
            sizes.run(*sample)
    for node in list(result.graph.nodes):
        if _is_weighted(node):
            pair = _equalize_after(result, node, sizes.found.get(node.name))
            if pair is not None:
                pairs.append(pair)
    result.graph.lint()
    result.recompile()
    return result, tuple(pairs)


class _Sizes(Interpreter):
    """The largest magnitude in each output channel of each layer, (N,), by node name."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Runs one node, and looks at its value."""
        value = super().run_node(n)
        if _is_weighted(n):
            channels = value.movedim(-1 if _is_linear(n) else 1, 0).flatten(1).abs().amax(1)
            self.found[n.name] = torch.maximum(channels, self.found.get(n.name, channels))
        return value


def _equalize_after(module: GraphModule, first: Node, sizes: Tensor | None) -> EqualizedPair | None:
    """Equalizes a layer, whose channels have the given sizes, with the one that follows; ``None`` where no layer follows."""
    node, barrier = first, ""
    while not (_is_weighted(node) and node is not first):
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_function":
            return None
        user = users[0]
        if not _is_weighted(user) and user.target not in _HOMOGENEOUS:
            why = "may move channels" if user.target in _MAY_MOVE_CHANNELS else "does not scale with its input"
            barrier = barrier or f"'{getattr(user.target, '__name__', user.target)}' between them {why}"
            if len(user.all_input_nodes) > 1 and sum(not is_constant(source) for source in user.all_input_nodes) > 1:
                return None
        if user.args[0] is not node:
            return None
        node = user
    if barrier:
        return EqualizedPair(module_path(first), module_path(node), barrier)
    return _rescale(module, first, node, sizes)


def _rescale(module: GraphModule, first: Node, second: Node, sizes: Tensor | None) -> EqualizedPair:
    names = module_path(first), module_path(second)
    w1, w2 = (constant_of(module, node.args[1]) for node in (first, second) if isinstance(node.args[1], Node))
    groups = groups_of(second)
    if _is_linear(second) != _is_linear(first) or (groups == 1 and w1.shape[0] != w2.shape[1]):
        return EqualizedPair(*names, "a flatten between them mixes channels and positions")
    per_group = w2.reshape(groups, w2.shape[0] // groups, *w2.shape[1:])  # (G, N/G, M/G, ...)
    r1 = w1.flatten(1).abs().amax(dim=1)
    r2 = per_group.transpose(1, 2).flatten(2).abs().amax(dim=2).flatten()
    scale = torch.where((r1 > 0) & (r2 > 0), torch.sqrt(r1 / r2.clamp_min(1e-30)), torch.ones_like(r1))
    if sizes is not None and bool(sizes.any()):
        # Against the usual factor: one that all channels have changes nothing.
        scale = torch.maximum(scale, scale.median() * sizes / sizes.max())
    first_shape = (-1, *[1] * (w1.ndim - 1))
    _replace_constant(module, first, 1, w1 / scale.reshape(first_shape))
    if len(first.args) > 2 and is_constant(first.args[2]):
        _replace_constant(module, first, 2, constant_of(module, first.args[2]) / scale)
    factors = scale.reshape(groups, 1, -1, *[1] * (w2.ndim - 2))
    _replace_constant(module, second, 1, (per_group * factors).reshape(w2.shape))
    return EqualizedPair(*names)


def _replace_constant(module: GraphModule, node: Node, position: int, value: Tensor) -> None:
    with module.graph.inserting_before(node):
        constant = add_buffer(module, f"{node.name}_equalized_{position}", value)
    node.args = (*node.args[:position], constant, *node.args[position + 1 :])


def _is_weighted(node: Node) -> bool:
    return node.op == "call_function" and node.target in WEIGHTED and is_constant(node.args[1])


def _is_linear(node: Node) -> bool:
    return node.target is _ATEN.linear.default
