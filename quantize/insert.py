"""From a float graph that carries quantization parameters to the graph with quantize and dequantize nodes.

The result is at the same time the torch reference (its ops compute in float32 on values that lie on the integer grids) and
what the emitters convert. Every consumer gets a dequantize node of its own: backends match one op with its private
neighbours. Biases are rounded to the grid that integer kernels keep them on, input scale times weight scale, so that the
reference and all runtimes start from the same integers.
"""

from __future__ import annotations

import copy
import operator

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.graph import add_buffer, channel_axis, constant_of, is_constant
from edgefold.quantize.powers import round_to_powers
from edgefold.quantize.scheme import DYNAMIC, EXPONENT_BITS, WEIGHT_SCALE, Q, QParams

_OPS = torch.ops.quantized_decomposed
WEIGHT_QMIN, WEIGHT_QMAX = -127, 127
SMALLEST_SCALE = 1e-12  # of an input that is quantized at run time
_INT8 = torch.iinfo(torch.int8)


def insert_qdq(graph: GraphModule, *, fold_weights: bool, run_time_scales: bool = True) -> GraphModule:
    """A copy of ``graph`` with quantize/dequantize pairs where its nodes carry parameters.

    Args:
        graph: ATen graph, float32, with the keys of `edgefold.quantize.scheme` in its nodes' ``meta``.
        fold_weights: whether a weight becomes an int8 constant behind one dequantize node (ONNX, ExecuTorch), or stays float
            behind a quantize/dequantize pair (what the LiteRT converter reads).
        run_time_scales: whether inputs that are quantized at run time get the nodes that do it, or are left to kernels that do
            it by themselves.
    """
    result = copy.deepcopy(graph)
    nodes = list(result.graph.nodes)
    for node in nodes:
        if EXPONENT_BITS in node.meta:
            _round_to_powers(result, node)
        elif WEIGHT_SCALE in node.meta:
            _quantize_parameters(result, node, fold_weights=fold_weights)
        if DYNAMIC in node.meta and run_time_scales:
            _quantize_at_run_time(result, node)
    for node in nodes:
        if Q in node.meta and node.op == "get_attr":
            _quantize_constant(result, node, fold_weights=fold_weights)
        elif Q in node.meta:
            _quantize_output(result, node)
    for node in nodes:
        # Between a dequantize and a quantize node; a copy in another memory format is needed.
        if Q in node.meta and node.target is torch.ops.aten.clone.default and not node.kwargs:
            node.replace_all_uses_with(node.all_input_nodes[0])
            result.graph.erase_node(node)
    result.graph.lint()
    # A module made anew holds only what its graph reads: a converter would write the float weights beside the integers.
    return GraphModule(result, result.graph)


def round_bias(bias: Tensor, input_scale: float, weight_scale: Tensor) -> Tensor:
    """The bias (N,) on the grid input_scale * weight_scale (N,), in float32."""
    grid = weight_scale.double() * input_scale
    return (torch.round(bias.double() / grid) * grid).float()


def quantize_weight(weight: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """The int8 weight (N, ...) for one symmetric scale (N,) an output channel; ``axis`` is that of these channels."""
    return torch.clamp(torch.round(weight / _along(scale, axis, weight.ndim)), WEIGHT_QMIN, WEIGHT_QMAX).to(torch.int8)


def weight_values(integers: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """The real numbers, float32, that an int8 weight (N, ...) with scales (N,) along ``axis`` stands for."""
    return integers.float() * _along(scale, axis, integers.ndim)


def _along(scale: Tensor, axis: int, rank: int) -> Tensor:
    return scale.reshape(*[1] * axis, -1, *[1] * (rank - axis - 1))


def _round_to_powers(module: GraphModule, node: Node) -> None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    rounded = round_to_powers(constant_of(module, weight), node.meta[EXPONENT_BITS])
    with module.graph.inserting_before(node):
        node.args = (node.args[0], add_buffer(module, f"{node.name}_weight_powers", rounded), *node.args[2:])
    if not weight.users:
        module.graph.erase_node(weight)


def _quantize_output(module: GraphModule, node: Node) -> None:
    params: QParams = node.meta[Q]
    arguments = (params.scale, params.zero_point, params.qmin, params.qmax, params.dtype)
    users = list(node.users)
    with module.graph.inserting_after(_last_placeholder(module) if node.op == "placeholder" else node):
        quantize = module.graph.call_function(_OPS.quantize_per_tensor.default, (node, *arguments))
    quantize.meta = _origin(node)
    for user in users:
        with module.graph.inserting_before(user):
            dequantize = module.graph.call_function(_OPS.dequantize_per_tensor.default, (quantize, *arguments))
        dequantize.meta = _origin(node)
        user.replace_input_with(node, dequantize)


def _quantize_at_run_time(module: GraphModule, node: Node) -> None:
    """Puts the input of a node on the grid of 8-bit integers that its own smallest and largest value (and 0) span."""
    source = node.args[0]
    assert isinstance(source, Node)
    limits = (_INT8.min, _INT8.max)
    with module.graph.inserting_before(node):
        found = module.graph.call_function(_OPS.choose_qparams.tensor, (source, *limits, SMALLEST_SCALE, torch.int8))
        scale, zero_point = (module.graph.call_function(operator.getitem, (found, index)) for index in (0, 1))
        quantize = module.graph.call_function(_OPS.quantize_per_tensor.tensor, (source, scale, zero_point, *limits, torch.int8))
        arguments = (quantize, scale, zero_point, *limits, torch.int8)
        dequantize = module.graph.call_function(_OPS.dequantize_per_tensor.tensor, arguments)
    for made in (found, scale, zero_point, quantize, dequantize):
        made.meta = _origin(node)
    node.args = (dequantize, *node.args[1:])


def _quantize_constant(module: GraphModule, node: Node, *, fold_weights: bool) -> None:
    """A constant of its own for each consumer: integers behind a dequantize node, or float behind a pair."""
    params: QParams = node.meta[Q]
    arguments = (params.scale, params.zero_point, params.qmin, params.qmax, params.dtype)
    value: Tensor = constant_of(module, node)
    integers = _OPS.quantize_per_tensor.default(value, *arguments)
    for user in list(node.users):
        with module.graph.inserting_before(user):
            if fold_weights:
                constant = add_buffer(module, f"{node.name}_int8", integers)
            else:
                on_grid = _OPS.dequantize_per_tensor.default(integers, *arguments)
                float_constant = add_buffer(module, f"{node.name}_float", on_grid)
                constant = module.graph.call_function(_OPS.quantize_per_tensor.default, (float_constant, *arguments))
            dequantize = module.graph.call_function(_OPS.dequantize_per_tensor.default, (constant, *arguments))
        dequantize.meta = _origin(user)
        user.replace_input_with(node, dequantize)
    module.graph.erase_node(node)


def _quantize_parameters(module: GraphModule, node: Node, *, fold_weights: bool) -> None:
    scale: Tensor = node.meta[WEIGHT_SCALE]
    source, weight_node, bias_node = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
    assert isinstance(source, Node)
    assert isinstance(weight_node, Node)
    weight = constant_of(module, weight_node)
    zeros, axis = torch.zeros(scale.shape, dtype=torch.int64), channel_axis(node)
    with module.graph.inserting_before(node):
        scale_node = add_buffer(module, f"{node.name}_weight_scale", scale)
        zeros_node = add_buffer(module, f"{node.name}_weight_zero_point", zeros)
        arguments = (scale_node, zeros_node, axis, WEIGHT_QMIN, WEIGHT_QMAX, torch.int8)
        rounded = quantize_weight(weight, scale, axis)
        if fold_weights:
            integers = add_buffer(module, f"{node.name}_weight_int8", rounded)
        else:
            # On the grid, so that a converter, which divides in another precision, finds the same integers.
            on_grid = add_buffer(module, f"{node.name}_weight_on_grid", weight_values(rounded, scale, axis))
            integers = module.graph.call_function(_OPS.quantize_per_channel.default, (on_grid, *arguments))
        dequantized = module.graph.call_function(_OPS.dequantize_per_channel.default, (integers, *arguments))
        dequantized.meta = _origin(node)
        arguments_of_node = list(node.args)
        arguments_of_node[1] = dequantized
        if isinstance(bias_node, Node) and is_constant(bias_node) and Q in source.meta:
            bias = round_bias(constant_of(module, bias_node), source.meta[Q].scale, scale)
            arguments_of_node[2] = add_buffer(module, f"{node.name}_bias_rounded", bias)
    node.args = tuple(arguments_of_node)
    for unused in (weight_node, bias_node):
        if isinstance(unused, Node) and not unused.users:
            module.graph.erase_node(unused)


def _last_placeholder(module: GraphModule) -> Node:
    nodes: list[Node] = module.graph.find_nodes(op="placeholder")
    return nodes[-1]


def _origin(node: Node) -> dict[str, object]:
    """The part of a node's ``meta`` that says which module it comes from."""
    return {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
