"""Powers of two against int8, as weights of one network with one calibration: what each costs, layer by layer.

All in SQNR = 10 log10(sum y^2 / sum (y - q)^2), y the float value and q the quantized one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgefold.quantize.calibrate import ScaleTable, annotated, output_sqnr_db
from edgefold.quantize.correct import correct_biases
from edgefold.quantize.graph import constant_of, module_path
from edgefold.quantize.paired import fake_quantize_weight
from edgefold.quantize.powers import round_to_powers
from edgefold.quantize.scheme import WEIGHT_SCALE
from edgefold.quantize.sensitivity import only


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One conv or linear: the SQNR of its weights, and that of the network's output with this layer alone quantized."""

    name: str  # module path
    int8_weight_db: float
    log2_weight_db: float
    int8_alone_db: float
    log2_alone_db: float


@dataclass(frozen=True, slots=True)
class PowerStudy:
    """The network's output with all layers quantized, and each layer, in the network's order."""

    exponent_bits: int
    int8_db: float
    log2_db: float
    layers: tuple[LayerComparison, ...]


def int8_table(graph: GraphModule, table: ScaleTable, samples: Sequence[tuple[Tensor, ...]]) -> ScaleTable:
    """The table of the same calibration with int8 weights, and with biases that are corrected for these.

    The weights are the nearest integers, as those of ``table`` are the nearest powers: what is compared is the grids.
    """
    return correct_biases(graph, replace(table, exponent_bits=0, biases={}), samples)


def compare(
    graph: GraphModule,
    powers: ScaleTable,
    integers: ScaleTable,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    progress: Callable[[], None] = lambda: None,
) -> PowerStudy:
    """Compares two tables of one calibration.

    Args:
        graph: the canonical graph.
        powers: the table with an exponent of some bits.
        integers: see `int8_table`.
        samples: inputs; a few tens are enough.
        progress: called after each layer.
    """
    first, second = annotated(graph, integers), annotated(graph, powers)
    layers = []
    for node in first.graph.nodes:
        if WEIGHT_SCALE not in node.meta:
            continue
        weight = constant_of(first, node.args[1])
        layers.append(
            LayerComparison(
                name=module_path(node),
                int8_weight_db=_sqnr_db(weight, fake_quantize_weight(weight, node.meta[WEIGHT_SCALE])),
                log2_weight_db=_sqnr_db(weight, round_to_powers(weight, powers.exponent_bits)),
                int8_alone_db=output_sqnr_db(only(first, node.name), samples, corrected=True),
                log2_alone_db=output_sqnr_db(only(second, node.name), samples, corrected=True),
            )
        )
        progress()
    return PowerStudy(powers.exponent_bits, output_sqnr_db(first, samples), output_sqnr_db(second, samples), tuple(layers))


def _sqnr_db(exact: Tensor, rounded: Tensor) -> float:
    noise = (exact.double() - rounded.double()).square().sum()
    return float(10 * torch.log10(exact.double().square().sum().clamp_min(1e-30) / noise.clamp_min(1e-30)))
