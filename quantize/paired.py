"""The float and the quantized network side by side, node by node, over a few samples.

It computes what `edgefold.quantize.insert` would, without building that graph, so that a caller can look at (or correct) each
value on its way: bias correction and the sensitivity report are both one such walk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgefold.quantize.graph import channel_axis, constant_of, is_constant
from edgefold.quantize.insert import SMALLEST_SCALE, quantize_weight, round_bias, weight_values
from edgefold.quantize.powers import round_to_powers
from edgefold.quantize.scheme import CORRECTED_BIAS, DYNAMIC, EXPONENT_BITS, ROUNDED_WEIGHT, WEIGHT_SCALE, Q, QParams

_OPS = torch.ops.quantized_decomposed

# (node, float values, quantized values before they are put on the grid), one value a sample; may change the latter in place.
Visit = Callable[[Node, list[Any], list[Any]], None]


def fake_quantize(value: Tensor, params: QParams) -> Tensor:
    """The value on its grid of integers, as float32."""
    arguments = (params.scale, params.zero_point, params.qmin, params.qmax, params.dtype)
    integers = _OPS.quantize_per_tensor.default(value, *arguments)
    result: Tensor = _OPS.dequantize_per_tensor.default(integers, *arguments)
    return result


def fake_quantize_by_range(value: Tensor) -> Tensor:
    """The value on the grid of 8-bit integers that its own range spans, as float32."""
    limits = (-128, 127)
    scale, zero_point = _OPS.choose_qparams.tensor(value, *limits, SMALLEST_SCALE, torch.int8)
    return fake_quantize(value, QParams(float(scale), int(zero_point), *limits))


def fake_quantize_weight(weight: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """The weight (N, ...) on the grids of its output channels, which are along ``axis``, as float32."""
    return weight_values(quantize_weight(weight, scale, axis), scale, axis)


def walk(
    graph: GraphModule,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    before: Visit = lambda node, exact, quantized: None,
    after: Visit = lambda node, exact, quantized: None,
) -> None:
    """Runs the graph in both ways over the samples.

    Args:
        graph: ATen graph with its float parameters, see `edgefold.quantize.calibrate.annotated`.
        samples: inputs of the graph.
        before: called with each node's values, the quantized ones not yet on the grid of the node's output.
        after: called with each node's values, the quantized ones on the grid.
    """
    exact: dict[Node, list[Any]] = {}
    quantized: dict[Node, list[Any]] = {}
    last_use = _last_uses(graph)
    inputs = iter(range(len(samples[0])))
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            if node.op == "get_attr":
                value = constant_of(graph, node)
                exact[node] = quantized[node] = [value] * len(samples)
                continue
            if node.op == "placeholder":
                position = next(inputs)
                exact[node] = [sample[position] for sample in samples]
                quantized[node] = list(exact[node])
            else:
                parameters = _quantized_parameters(graph, node)
                exact[node] = [_call(node, exact, {}, index) for index in range(len(samples))]
                quantized[node] = [_call(node, quantized, parameters, index) for index in range(len(samples))]
            before(node, exact[node], quantized[node])
            if Q in node.meta:
                quantized[node] = [fake_quantize(value, node.meta[Q]) for value in quantized[node]]
            after(node, exact[node], quantized[node])
            for source in last_use.get(node, ()):
                del exact[source], quantized[source]


def has_bias(node: Node) -> bool:
    """Whether a node is a quantized layer with a bias."""
    return WEIGHT_SCALE in node.meta and len(node.args) > 2 and is_constant(node.args[2])


def correct_bias(graph: GraphModule, node: Node, exact: list[Any], quantized: list[Any], *, every: int = 1) -> Tensor:
    """The bias (N,) of a layer with which the mean of its quantized outputs is that of the exact ones; moves these, in place.

    Args:
        graph: the layer's.
        node: the layer.
        exact: its outputs, one tensor a sample.
        quantized: the same of the quantized network.
        every: which samples the means are of: each ``every``-th.
    """
    _, weight, bias = node.args[:3]
    assert isinstance(weight, Node)
    assert isinstance(bias, Node)
    space = constant_of(graph, weight).ndim - 2  # dimensions after the channels
    errors = [(y - q).movedim(-1 - space, 0) for y, q in zip(exact[::every], quantized[::every], strict=True)]
    difference = torch.stack([error.reshape(len(error), -1).mean(dim=1) for error in errors]).mean(dim=0)
    spread = difference.reshape(-1, *[1] * space)
    for value in quantized:
        value += spread
    return constant_of(graph, bias) + difference


def _call(node: Node, values: dict[Node, list[Any]], replaced: dict[Node, Tensor], index: int) -> Any:
    def fetch(source: Node) -> Any:
        return replaced[source] if source in replaced else values[source][index]

    args, kwargs = map_arg(node.args, fetch), map_arg(node.kwargs, fetch)
    if replaced and DYNAMIC in node.meta:
        source, *others = args
        args = (fake_quantize_by_range(source), *others)  # type: ignore[arg-type]  # a tensor
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function node's target is a function


def _quantized_parameters(graph: GraphModule, node: Node) -> dict[Node, Tensor]:
    """The weight and the bias of a node as its integer kernel sees them."""
    scale = node.meta.get(WEIGHT_SCALE)
    if scale is None:
        return {}
    source, weight, *rest = node.args
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    found: dict[Node, Tensor] = {}
    if EXPONENT_BITS in node.meta:
        found[weight] = round_to_powers(constant_of(graph, weight), node.meta[EXPONENT_BITS])
    elif ROUNDED_WEIGHT in node.meta:
        found[weight] = weight_values(node.meta[ROUNDED_WEIGHT], scale)
    else:
        found[weight] = fake_quantize_weight(constant_of(graph, weight), scale, channel_axis(node))
    if rest and is_constant(rest[0]):
        bias = node.meta.get(CORRECTED_BIAS, constant_of(graph, rest[0]))
        exact = EXPONENT_BITS in node.meta or Q not in source.meta  # sums of shifts and of floats are
        found[rest[0]] = bias if exact else round_bias(bias, source.meta[Q].scale, scale)
    return found


def _last_uses(graph: GraphModule) -> dict[Node, list[Node]]:
    """For each node the values that nothing after it reads."""
    position = {node: index for index, node in enumerate(graph.graph.nodes)}
    found: dict[Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.users:
            found.setdefault(max(node.users, key=position.__getitem__), []).append(node)
    return found
