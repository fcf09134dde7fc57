"""Hard-swish as one op between integer layers: the same integers in the layers, and only where the pattern is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.inspect import inspect
from edgefold.export.lower.lower import lower
from edgefold.export.passes.hard_swish_tables import hard_swish_tables
from edgefold.export.program import LoweredProgram
from edgefold.quantize.insert import quantize_weight
from edgefold.quantize.scheme import WEIGHT_SCALE

IMAGES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Swishes(nn.Module):
    """Hard-swish after a convolution, after a sum, and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.one(3 * x))
        x = F.hardswish(F.relu(self.two(x)) + x)
        y: Tensor = self.head(F.hardswish(self.hidden(x.mean((2, 3)))))
        return y


class Near(nn.Module):
    """Products with a clipped gate that are no hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x * (x / 6 + 0.4).clamp(0, 1)
        y: Tensor = self.two(x * (x / 5 + 0.5).clamp(0, 1))
        return y


def lowered_of(net: nn.Module) -> LoweredProgram:
    program = edgefold.quantize_model(net, IMAGES[:1], calibration=IMAGES).program
    return lower(program, format=Format.EXECUTORCH, precision=Precision.INT8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Swishes().eval()


@pytest.fixture(scope="module")
def lowered(net: nn.Module) -> LoweredProgram:
    return lowered_of(net)


def integers(graph: GraphModule) -> list[Tensor]:
    """The 8-bit weights of each layer."""
    state = graph.state_dict()
    return [
        quantize_weight(state[str(node.args[1].target)], node.meta[WEIGHT_SCALE])
        for node in graph.graph.nodes
        if WEIGHT_SCALE in node.meta
    ]


def test_layers_keep_their_integers_and_the_network_its_numbers(lowered: LoweredProgram) -> None:
    before = lowered.program.graph
    after, modified = hard_swish_tables(before)
    assert modified
    targets = [node.target for node in after.graph.nodes]
    assert targets.count(torch.ops.aten.hardswish.default) == 3
    for one, two in zip(integers(before), integers(after), strict=True):
        assert torch.equal(one, two)
    for image in torch.split(IMAGES, 1):
        torch.testing.assert_close(after(image)[0], before(image)[0], rtol=1e-5, atol=1e-6)
    assert not hard_swish_tables(after)[1]


def test_other_products_stay() -> None:
    torch.manual_seed(0)
    assert not hard_swish_tables(lowered_of(Near().eval()).program.graph)[1]


def test_the_runtime_looks_it_up_in_integers(net: nn.Module, lowered: LoweredProgram, tmp_path: Path) -> None:
    agreeing = replace(lowered, plan=replace(lowered.plan, whole=True))
    errors = []
    for name, program, tables in (("table", lowered, 3), ("agreeing", agreeing, 0)):
        path = get_emitter(Format.EXECUTORCH).emit(program, EmitOptions(), tmp_path / f"{name}.pte").path
        seen = inspect(path)
        assert seen.ops.get("XNNHardswish", 0) == tables
        assert (seen.partitions, seen.integer_mac_share, seen.float_ops, seen.conversions_inside) == (1, 1.0, 0, 0)
        (found,) = edgefold.run(path, IMAGES.numpy())
        errors.append(float(np.square(found - net(IMAGES).detach().numpy()).mean()))
    assert errors[0] < 1.1 * errors[1]
