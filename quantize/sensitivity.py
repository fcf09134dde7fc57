"""Where INT8 loses accuracy: each layer alone, the network up to each layer, and what leaving a layer out would gain.

All in SQNR = 10 log10(sum y^2 / sum (y - q)^2), y the float value and q the quantized one, over the samples given.

* ``cumulative_db``: at the layer's output, with everything before it quantized too. It falls along the network.
* ``alone_db``: at the network's output, with only this layer's weights, input and output quantized.
* ``gain_db``: what the network's output gains when this layer is left float and all others are quantized.

The ranking is by ``alone_db``: the layer that does most harm by itself comes first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.calibrate import ScaleTable, annotated, output_sqnr_db, without
from edgefold.quantize.graph import module_path
from edgefold.quantize.paired import walk
from edgefold.quantize.scheme import CORRECTED_BIAS, WEIGHT_SCALE, Q
from edgefold.quantize.sensitivity_data import LayerSensitivity, Sensitivity

__all__ = ["LayerSensitivity", "Sensitivity", "analyse", "cumulative_db", "only", "output_of"]


def analyse(
    graph: GraphModule,
    table: ScaleTable,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    progress: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Ranks the layers of a canonical graph under a table of scales.

    Args:
        graph: the canonical graph.
        table: its scales.
        samples: inputs; a few tens are enough.
        progress: called after each layer.
    """
    attached = annotated(graph, table)
    cumulative = cumulative_db(attached, samples)
    total = output_sqnr_db(attached, samples)
    # Weights and biases were chosen for the layers as they are now: what a network gains without one of them is seen without.
    plain = replace(table, biases={}, rounded={})
    corrected = output_sqnr_db(annotated(graph, plain), samples, corrected=True)
    layers: list[LayerSensitivity] = []
    for node in attached.graph.nodes:
        if WEIGHT_SCALE not in node.meta:
            continue
        output = output_of(node)
        params = output.meta.get(Q)
        rest = annotated(graph, without(plain, graph, frozenset({node.name})))
        layers.append(
            LayerSensitivity(
                name=module_path(node),
                node=node.name,
                alone_db=output_sqnr_db(only(attached, node.name), samples, corrected=True),
                cumulative_db=cumulative.get(output.name, total),
                gain_db=output_sqnr_db(rest, samples, corrected=True) - corrected,
                low=0.0 if params is None else params.scale * (params.qmin - params.zero_point),
                high=0.0 if params is None else params.scale * (params.qmax - params.zero_point),
                clipped_share=table.clipped.get(output.name, 0.0),
                index=len(layers),
            )
        )
        progress()
    return Sensitivity(total, tuple(sorted(layers, key=lambda layer: layer.alone_db)))


def cumulative_db(attached: GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """The SQNR of each quantized value, everything before it quantized too, by node name."""
    found: dict[str, float] = {}

    def look(node: Node, exact: list[Any], quantized: list[Any]) -> None:
        if Q in node.meta:
            signal = sum(float(y.double().square().sum()) for y in exact)
            noise = sum(float((y.double() - q.double()).square().sum()) for y, q in zip(exact, quantized, strict=True))
            found[node.name] = float(10 * torch.log10(torch.tensor(max(signal, 1e-30) / max(noise, 1e-30))))

    walk(attached, samples, after=look)
    return found


def output_of(node: Node) -> Node:
    """The node whose value is the layer's output: the layer itself, or the activation fused into it."""
    return node if Q in node.meta or len(node.users) != 1 else next(iter(node.users))


def only(attached: GraphModule, name: str) -> GraphModule:
    """A copy in which only one layer is quantized: its weights, its input and its output.

    No bias is corrected in it: those of the table make up for other layers too.
    """
    result = copy.deepcopy(attached)
    layer = next(node for node in result.graph.nodes if node.name == name)
    kept = {name, output_of(layer).name, *(source.name for source in layer.all_input_nodes)}
    for node in result.graph.nodes:
        node.meta.pop(CORRECTED_BIAS, None)
        if node.name not in kept:
            node.meta.pop(Q, None)
        if node.name != name:
            node.meta.pop(WEIGHT_SCALE, None)
    return result
