"""One layer as a network of its own, to measure what its lowerings cost on a device.

The layer stands in its usual place, with a ReLU behind it. Where its output fits its input it is repeated, so that
conversions of layout and type at the ends of the network, which are the same for every lowering, count less. Its
channel groups are stored contiguously, so nothing is reordered.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.fold.structure import centre_tap
from edgefold.export.lower.branches import branches_of
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.scheme import GRIDS
from edgefold.schemes import scheme_of

REPEATS: Final = 4


def repeats(geometry: LayerGeometry) -> int:
    """How often the layer stands in its network; a measured time is divided by this."""
    same = geometry.in_channels == geometry.out_channels and geometry.space == geometry.out_space
    return REPEATS if same else 1


def layer_program(geometry: LayerGeometry, precision: Precision) -> Program:
    """The canonical network of one layer, with random weights and inputs, calibrated if the precision needs it."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(repeats(geometry)):
        layers += [_conv(geometry, generator), nn.ReLU()]
    examples = torch.randn(1, geometry.in_channels, *geometry.space, generator=generator)
    program = capture(nn.Sequential(*layers).eval(), examples)
    if not scheme_of(precision).calibrated:
        return program
    # Random weights lose more by pair-safe scales than trained ones do, and would be timed in kernels that networks seldom use.
    table = calibrate(
        program.graph,
        [program.example_inputs],
        observer="minmax",
        branches=branches_of,
        full_range=frozenset(),
        grid=GRIDS[scheme_of(precision).activation_bits],
    )
    return Program(attach(program.graph, table), program.example_inputs, program.input_names, program.output_names)


def lowered_layer(geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> LoweredProgram:
    """The network of one layer in one lowering; its time over `repeats` is the layer's cost.

    A group convolution in its own right is measured as `grouped`, since it has the same form.
    """
    return lower(layer_program(geometry, precision), format=format, precision=precision, lowering=lowering)


def _conv(geometry: LayerGeometry, generator: torch.Generator) -> nn.Module:
    kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if len(geometry.kernel) == 1 else nn.Conv2d
    conv = kind(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel,  # type: ignore[arg-type]  # one number a dimension
        geometry.stride,  # type: ignore[arg-type]  # the same
        geometry.padding,  # type: ignore[arg-type]  # the same
        geometry.dilation,  # type: ignore[arg-type]  # the same
    )
    with torch.no_grad():
        conv.weight.copy_(_weight(geometry, generator))
        if conv.bias is not None:
            conv.bias.normal_(0.0, 0.1, generator=generator)
    return conv


def _weight(geometry: LayerGeometry, generator: torch.Generator) -> Tensor:
    """(N, M, *kernel) with the structure of the geometry, at the scale that keeps activations near 1."""
    weight = torch.randn(geometry.out_channels, geometry.in_channels, *geometry.kernel, generator=generator)
    mask = torch.zeros_like(weight)
    if not geometry.groups:
        mask.fill_(1.0)
    if geometry.point:
        mask.flatten(2)[:, :, np.ravel_multi_index(centre_tap(geometry.kernel), geometry.kernel)] = 1.0
    row = column = 0
    for reads, writes in geometry.groups:
        mask[row : row + writes, column : column + reads] = 1.0
        row, column = row + writes, column + reads
    fan_in = mask.flatten(1).sum(1).clamp(min=1.0)  # (N,)
    return weight * mask * torch.sqrt(2.0 / fan_in).reshape(-1, *[1] * (weight.ndim - 1))
