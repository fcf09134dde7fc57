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

from edgefold.quantize.graph import constant_of
from edgefold.quantize.insert import SMALLEST_SCALE, WEIGHT_QMAX, WEIGHT_QMIN, quantize_weight, round_bias
from edgefold.quantize.powers import round_to_powers
from edgefold.quantize.scheme import DYNAMIC, EXPONENT_BITS, WEIGHT_SCALE, Q, QParams

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


def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight (N, ...) on the grids of its output channels, as float32."""
    zeros = torch.zeros(scale.shape, dtype=torch.int64)
    result: Tensor = _OPS.dequantize_per_channel.default(
        quantize_weight(weight, scale), scale, zeros, 0, WEIGHT_QMIN, WEIGHT_QMAX, torch.int8
    )
    return result


def walk(
    graph: GraphModule,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    before: Visit = lambda node, exact, quantized: None,
    after: Visit = lambda node, exact, quantized: None,
) -> None:
    """Runs the graph in both ways over the samples.

    Args:
        graph: ATen graph whose nodes carry quantization parameters.
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
    if EXPONENT_BITS in node.meta:  # sums of shifts are exact, and so is the bias
        return {weight: round_to_powers(constant_of(graph, weight), node.meta[EXPONENT_BITS])}
    found = {weight: fake_quantize_weight(constant_of(graph, weight), scale)}
    if rest and isinstance(rest[0], Node) and Q in source.meta:
        found[rest[0]] = round_bias(constant_of(graph, rest[0]), source.meta[Q].scale, scale)
    return found


def _last_uses(graph: GraphModule) -> dict[Node, list[Node]]:
    """For each node the values that nothing after it reads."""
    position = {node: index for index, node in enumerate(graph.graph.nodes)}
    found: dict[Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.users:
            found.setdefault(max(node.users, key=position.__getitem__), []).append(node)
    return found
