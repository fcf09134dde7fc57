"""Hard-swish in float between integer layers: the same integers in the layers, and only where the pattern is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.inspect import inspect
from edgefold.export.lower.float_hard_swish import float_hard_swish
from edgefold.export.lower.lower import lower
from edgefold.export.program import LoweredProgram
from edgefold.quantize.insert import quantize_weight
from edgefold.quantize.scheme import WEIGHT_SCALE

IMAGES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Swishes(nn.Module):
    """Hard-swish after a convolution, after a sum (which stays), and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.one(3 * x))
        x = F.hardswish(F.relu(self.two(x)) + x)
        y: Tensor = self.head(F.hardswish(self.hidden(x.mean((2, 3)))))
        return y


@pytest.fixture(scope="module")
def lowered() -> LoweredProgram:
    torch.manual_seed(0)
    program = edgefold.quantize_model(Swishes().eval(), IMAGES[:1], calibration=IMAGES).program
    return lower(program, format=Format.EXECUTORCH, precision=Precision.INT8)


def integers(program: LoweredProgram) -> list[Tensor]:
    """The 8-bit weights of each layer."""
    graph = program.program.graph
    state = graph.state_dict()
    return [
        quantize_weight(state[str(node.args[1].target)], node.meta[WEIGHT_SCALE])
        for node in graph.graph.nodes
        if WEIGHT_SCALE in node.meta
    ]


def test_layers_keep_their_integers_and_the_network_its_numbers(lowered: LoweredProgram) -> None:
    floated = float_hard_swish(lowered)
    targets = [node.target for node in floated.program.graph.graph.nodes]
    assert targets.count(torch.ops.aten.hardswish.default) == 2  # of three: one follows a sum
    assert (floated.plan.float_hard_swish, lowered.plan.float_hard_swish) == (True, False)
    for one, two in zip(integers(lowered), integers(floated), strict=True):
        assert torch.equal(one, two)
    for image in torch.split(IMAGES, 1):
        expected, found = (each.program.graph(image)[0] for each in (lowered, floated))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_file_is_one_partition_and_as_near_to_the_network(lowered: LoweredProgram, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Swishes().eval()
    errors = []
    for name, program in (("integer", lowered), ("float", float_hard_swish(lowered))):
        path = get_emitter(Format.EXECUTORCH).emit(program, EmitOptions(), tmp_path / f"{name}.pte").path
        (found,) = edgefold.run(path, IMAGES.numpy())
        errors.append(float(np.abs(found - net(IMAGES).detach().numpy()).max()))
        seen = inspect(path)
        assert (seen.partitions, seen.integer_mac_share) == (1, 1.0)
    assert errors[1] < 2 * errors[0] + 0.01


def test_a_network_without_one_is_itself(lowered: LoweredProgram) -> None:
    program = edgefold.quantize_model(nn.Conv2d(3, 4, 3).eval(), IMAGES[:1], calibration=IMAGES).program
    other = lower(program, format=Format.EXECUTORCH, precision=Precision.INT8)
    assert float_hard_swish(other) is other
    floated = float_hard_swish(lowered)
    assert float_hard_swish(floated) is floated
