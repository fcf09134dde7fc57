"""Weights rounded so that a layer's output stays the same, instead of each to its nearest integer.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, section 3. For one
output channel with weights w over inputs x, rounding them to q costs

    E (w x - q x)^2 = (w - q) H (w - q)^T,    H = E x x^T.

Where the layer has a bias, the mean of the error is corrected there (`edgefold.quantize.paired`), and H is the covariance of x.

The weights are rounded one after the other, those of large H_kk first, and the error of each moves those that are left: with the
upper Cholesky factor U of the inverse of H, q_k = round(w_k) and then w_j -= (w_k - q_k) U_kj / U_kk for all j > k.

Three things are ours. The inputs are those of the quantized network, whose layers before are rounded and corrected. A weight of
zero stays zero, since zeros are what a layer's structure is made of, and sums of pairs stay where 16-bit products do not saturate
(`edgefold.quantize.pairs`). Half of the samples make H and the other half judges: a channel that they do not find better keeps
its nearest integers, and so does a network that they find clearly worse (`edgefold.quantize.judging`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.functional import unfold

from edgefold.quantize.calibrate import ScaleTable, annotated
from edgefold.quantize.graph import constant_of, groups_of, is_constant
from edgefold.quantize.insert import WEIGHT_QMAX, WEIGHT_QMIN, quantize_weight
from edgefold.quantize.judging import is_kept
from edgefold.quantize.paired import correct_bias, has_bias, walk
from edgefold.quantize.pairs import PAIR_LIMIT
from edgefold.quantize.scheme import ROUNDED_WEIGHT, WEIGHT_SCALE

_ATEN = torch.ops.aten
_CONVS: Final = (_ATEN.conv1d.default, _ATEN.conv2d.default)
_DAMPING: Final = 0.01  # of the mean diagonal of H, as in the paper
_BLOCK: Final = 128  # columns between two updates of all that is left
_LARGEST: Final = 4608  # weights of an output channel: H of more would take longer than it is worth
_VECTORS_A_WEIGHT: Final = 4  # inputs for each weight of an output channel: more of them change H little


def round_by_data(graph: GraphModule, table: ScaleTable, samples: Sequence[tuple[Tensor, ...]]) -> ScaleTable:
    """The table with rounded weights and corrected biases; the table itself where held-out samples are clearly worse with them.

    Args:
        graph: the canonical graph of the table.
        table: its scales, with those of activations.
        samples: calibration inputs.
    """
    carrying = annotated(graph, replace(table, biases={}))
    biases: dict[str, Tensor] = {}

    def round_users(source: Node, _: list[Any], quantized: list[Any]) -> None:
        for node in source.users:
            if _is_free(carrying, node, source, quantized[0]):
                node.meta[ROUNDED_WEIGHT] = _round_layer(carrying, node, quantized, pairs=node.name not in table.full_range)

    def correct(node: Node, exact: list[Any], quantized: list[Any]) -> None:
        if has_bias(node):
            biases[node.name] = correct_bias(carrying, node, exact, quantized, every=2)

    walk(carrying, samples, before=correct, after=round_users)
    rounded = {node.name: node.meta[ROUNDED_WEIGHT] for node in carrying.graph.nodes if ROUNDED_WEIGHT in node.meta}
    candidate = replace(table, rounded=rounded, biases=biases)
    return candidate if is_kept(graph, candidate, table, samples[1::2] or samples) else table


def _is_free(graph: GraphModule, node: Node, source: Node, value: Tensor) -> bool:
    """Whether a node is a layer over batches of ``source`` whose weight is its own, and small enough."""
    if WEIGHT_SCALE not in node.meta or node.args[0] is not source:
        return False
    weight = node.args[1]
    if node.target not in (*_CONVS, _ATEN.linear.default) or not is_constant(weight) or len(weight.users) > 1:
        return False
    found = constant_of(graph, weight)
    batched = value.ndim == found.ndim if node.target in _CONVS else value.ndim > 1
    return batched and found[0].numel() <= _LARGEST


def _round_layer(graph: GraphModule, node: Node, inputs: Sequence[Tensor], *, pairs: bool) -> Tensor:
    """The int8 weight (N, ...) of a layer; its inputs are one tensor a sample."""
    assert isinstance(node.args[1], Node)
    weight, scale = constant_of(graph, node.args[1]), node.meta[WEIGHT_SCALE]
    groups, taps = groups_of(node), math.prod(weight.shape[2:])
    nearest = quantize_weight(weight, scale)
    exact = (weight.double() / scale.double().reshape(-1, *[1] * (weight.ndim - 1))).reshape(groups, -1, weight[0].numel())
    partner = _partners(weight.shape[1], taps) if pairs and weight.shape[1] > 1 else None
    rounded = _round(exact, _covariance(node, weight, inputs[::2]), partner)
    if rounded is None:
        return nearest
    kept = nearest.reshape(rounded.shape).double()
    changes = torch.cat([exact - rounded, exact - kept], dim=1)
    judged, before = _cost(changes, node, weight, inputs[1::2] or inputs).chunk(2, dim=1)
    return torch.where((judged < before).unsqueeze(-1), rounded, kept).reshape(weight.shape).to(torch.int8)


def _covariance(node: Node, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """H of each group, float64 (G, K, K): around the mean where the layer has a bias."""
    products: Tensor = torch.zeros(())
    total, count, centre = torch.zeros(()), 0, None
    for vectors in _vectors(node, weight, inputs):
        if centre is None:  # near the mean, so that float32 loses nothing in the difference below
            centre = vectors.mean(dim=2, keepdim=True) if has_bias(node) else torch.zeros_like(vectors[:, :, :1])
        around = vectors - centre
        products = products + (around @ around.transpose(1, 2)).double()
        total = total + around.double().sum(dim=2, keepdim=True)
        count += vectors.shape[2]
    mean = total / count if has_bias(node) else torch.zeros_like(total)
    return products / count - mean @ mean.transpose(1, 2)


def _cost(error: Tensor, node: Node, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The mean square of what an error (G, N/G, K) of the weights adds to each output channel, float64 (G, N/G).

    Around the mean where the layer has a bias.
    """
    squares, total, count = torch.zeros(()), torch.zeros(()), 0
    for vectors in _vectors(node, weight, inputs):
        added = (error.float() @ vectors).double()
        squares, total = squares + added.square().sum(dim=2), total + added.sum(dim=2)
        count += vectors.shape[2]
    return squares / count - (total / count).square() if has_bias(node) else squares / count


def _vectors(node: Node, weight: Tensor, inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """The x of each group, float32 (G, K, vectors), of one sample after the other."""
    wanted = max(1, math.ceil(_VECTORS_A_WEIGHT * weight[0].numel() / len(inputs)))  # of each sample
    for value in inputs:
        yield _vectors_of(node, tuple(weight.shape[2:]), value, wanted).reshape(groups_of(node), weight[0].numel(), -1)


def _vectors_of(node: Node, kernel: tuple[int, ...], value: Tensor, wanted: int) -> Tensor:
    """The x (G * K, vectors) of one sample, from positions that are spread evenly, at least as many as wanted if there are."""
    if node.target not in _CONVS:
        rows = value.flatten(0, -2)
        return rows[:: max(1, len(rows) // wanted)].T
    stride, padding, dilation = (_of_axes(node, index, default) for index, default in ((3, 1), (4, 0), (5, 1)))
    kernel = _both_axes(kernel, 1)
    if value.ndim == 3:
        value = value.unsqueeze(2)
    size = [
        (value.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    step = max(1, math.isqrt(math.prod(size) * len(value) // wanted))
    down, right = (each * min(step, most) for each, most in zip(stride, size, strict=True))
    return unfold(value, kernel, dilation, padding, (down, right)).transpose(0, 1).flatten(1)


def _of_axes(node: Node, index: int, default: int) -> tuple[int, int]:
    """An argument of a convolution for rows and columns; one over a single dimension has one row."""
    given = node.args[index] if len(node.args) > index else (default,)
    values = tuple(given) if isinstance(given, list | tuple) else (given,)
    one = node.target is _ATEN.conv1d.default
    return _both_axes(tuple(values * (1 if one or len(values) == 2 else 2)), default)


def _both_axes(values: tuple[int, ...], rows: int) -> tuple[int, int]:
    return (rows, *values)[-2:]  # type: ignore[return-value]  # two of them


def _partners(channels: int, taps: int) -> Tensor:
    """For each column (channel, tap) of a channel's weights the one whose product is added to its own in 16 bits.

    Kernels go through taps and in each through channels. The last of an odd number has none, and gets itself.
    """
    columns = torch.arange(channels * taps)
    place = (columns % taps) * channels + columns // taps
    other = torch.where((place ^ 1) < channels * taps, place ^ 1, place)
    return (other % channels) * taps + other // channels


def _round(exact: Tensor, moments: Tensor, partner: Tensor | None) -> Tensor | None:
    """Integers (G, N/G, K), as float64, for weights in steps of their scales; ``None`` where H cannot be inverted."""
    columns = exact.shape[2]
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)  # (G, K)
    across = order.unsqueeze(1).expand_as(exact)
    left, zero = exact.gather(2, across), exact.gather(2, across) == 0
    factor = _factor(moments.gather(1, order.unsqueeze(2).expand_as(moments)).gather(2, order.unsqueeze(1).expand_as(moments)))
    if factor is None:
        return None
    result = torch.zeros_like(exact)  # in the order of the weight; 0 where a column is yet to come
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.zeros_like(left[:, :, start:end])
        for column in range(start, end):
            at = order[:, None, column, None].expand(-1, exact.shape[1], 1)
            low, high = torch.full_like(at, WEIGHT_QMIN, dtype=exact.dtype), torch.full_like(at, WEIGHT_QMAX, dtype=exact.dtype)
            if partner is not None:
                beside = result.gather(2, partner[at])
                low, high = low.maximum(-PAIR_LIMIT - beside.clamp_max(0)), high.minimum(PAIR_LIMIT - beside.clamp_min(0))
            value = left[:, :, column, None]
            chosen = value.round().maximum(low).minimum(high).masked_fill(zero[:, :, column, None], 0)
            result.scatter_(2, at, chosen)
            error = (value - chosen) / factor[:, None, column, column, None]
            errors[:, :, column - start, None] = error
            left[:, :, column:end] -= error * factor[:, None, column, column:end]
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return result


def _factor(moments: Tensor) -> Tensor | None:
    """The upper Cholesky factor (G, K, K) of the inverse of H, damped; ``None`` where numbers are too large for one."""
    damping = _DAMPING * moments.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)
    damped = moments + damping[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return None
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if bool(failed.any()) else factor
