"""Integer ends of a graph with quantize/dequantize nodes, for converters that take the ends as the graph has them.

int8 ends are the integers of the graph: the first quantize and the last dequantize node go. uint8 ends differ by 128, that is by
the highest bit: uint8 quantize/dequantize nodes would need a kernel library that few apps link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule, Node

from edgefold.artifact import TensorSpec
from edgefold.errors import RuntimeFailure
from edgefold.export.passes.infra import GraphPass

_ATEN = torch.ops.aten
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_HIGH_BIT = 128


def integer_ends(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> GraphPass[GraphModule]:
    """The pass that makes the ends with an integer spec integer; it works in place on the graph that it is given."""

    def run(graph: GraphModule) -> tuple[GraphModule, bool]:
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        chosen = [(node, spec) for node, spec in zip(placeholders, inputs, strict=True) if spec.scale is not None]
        for node, spec in chosen:
            _input(graph, node, spec)
        output = graph.graph.output_node()
        values = list(output.args[0])  # type: ignore[arg-type]  # capture makes it a tuple
        for position, spec in enumerate(outputs):
            if spec.scale is not None:
                values[position] = _output(graph, output, values[position], spec)
        output.args = (tuple(values),)
        graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        graph.graph.lint()
        graph.recompile()
        return graph, bool(chosen) or any(spec.scale is not None for spec in outputs)

    return GraphPass("io-types", run)


def _input(graph: GraphModule, node: Node, spec: TensorSpec) -> None:
    (quantize,) = _expect(node.users, lambda user: user.target is _QUANTIZE, spec)
    if spec.dtype == "int8":
        quantize.replace_all_uses_with(node)
        return
    with graph.graph.inserting_before(quantize):
        shifted = graph.graph.call_function(_ATEN.bitwise_xor.Scalar, (node, _HIGH_BIT))
        signed = graph.graph.call_function(_ATEN.to.dtype, (shifted, torch.int8))
    quantize.replace_all_uses_with(signed)


def _output(graph: GraphModule, output: Node, value: object, spec: TensorSpec) -> Node:
    (dequantize,) = _expect([value], lambda node: getattr(node, "target", None) is _DEQUANTIZE, spec)
    quantize = dequantize.args[0]
    assert isinstance(quantize, Node)
    if spec.dtype == "int8":
        return quantize
    with graph.graph.inserting_before(output):
        unsigned = graph.graph.call_function(_ATEN.to.dtype, (quantize, torch.uint8))
        return graph.graph.call_function(_ATEN.bitwise_xor.Scalar, (unsigned, _HIGH_BIT))


def _expect(nodes: object, holds: Callable[[Node], bool], spec: TensorSpec) -> list[Node]:
    found = [node for node in nodes if isinstance(node, Node) and holds(node)]  # type: ignore[attr-defined]  # nodes or users
    if len(found) != 1:
        raise RuntimeFailure(f"'{spec.name}' is not quantized at its end of the graph; please report this bug")
    return found
