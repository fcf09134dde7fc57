"""The compound units: shapes, structure, formulas, and the functions that they are made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgefold.errors import UsageError
from edgefold.models.blocks import (
    ChannelShuffle,
    InvertedResidual,
    ShuffleUnit,
    ShuffleUnitV2,
    SqueezeExcite,
    channel_shuffle,
    inverted_residual_macs,
    inverted_residual_parameters,
)


def test_shuffle_is_the_permutation_of_the_paper() -> None:
    x = torch.arange(12).view(1, 12, 1, 1)
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(ChannelShuffle(4)(channel_shuffle(x, 3)), x)  # G groups, then C/G groups: back


@pytest.mark.parametrize("stride", [1, 2])
def test_shuffle_unit(stride: int) -> None:
    unit = ShuffleUnit(8, 8 if stride == 1 else 24, stride=stride, groups=4).double().eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    out = unit(x)
    assert out.shape == ((2, 8, 6, 6) if stride == 1 else (2, 24, 3, 3))
    assert unit.expand.groups == unit.project.groups == 4
    assert unit.depthwise.groups == unit.depthwise.in_channels
    if stride == 2:  # the first M outputs are the pooled input
        pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1).relu()
        torch.testing.assert_close(out[:, :8], pooled)
    else:  # with the branch silenced, the input passes
        nn.init.zeros_(unit.bn3.weight)
        torch.testing.assert_close(unit(x), x.relu())


def test_shuffle_unit_v2_passes_half_of_the_channels() -> None:
    unit = ShuffleUnitV2(8, 8).eval()
    x = torch.randn(1, 8, 5, 5)
    out = unit(x)
    assert torch.equal(out[:, 0::2], x[:, :4])  # the shuffle puts the two halves side by side
    down = ShuffleUnitV2(6, 10, stride=2)
    assert down(torch.randn(1, 6, 8, 8)).shape == (1, 10, 4, 4)
    weights = sum(p.numel() for p in down.branch.parameters() if p.ndim == 4)
    assert weights == 6 * 5 + 5 * 9 + 5 * 5


@pytest.mark.parametrize("expand", [1, 3])
def test_inverted_residual(expand: int) -> None:
    block = InvertedResidual(8, 8, expand=expand).eval()
    weights = sum(p.numel() for p in block.parameters() if p.ndim == 4)
    assert weights == inverted_residual_parameters(8, 8, 3, expand)
    assert inverted_residual_macs(8, 8, 3, expand, (4, 4), (4, 4)) == 16 * weights
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x + block.layers(x))
    for change in (InvertedResidual(8, 8, stride=2), InvertedResidual(8, 10)):
        assert not change.skip
    acts = [module for module in block.layers if isinstance(module, nn.ReLU6)]
    assert len(acts) == (2 if expand > 1 else 1)
    assert isinstance(block.layers[-1], nn.BatchNorm2d)  # linear at the end


def test_inverted_residual_of_v3() -> None:
    block = InvertedResidual(8, 12, 5, 2, 2, expand=2, activation="hardswish", attention=True)
    assert block(torch.randn(1, 8, 9, 9)).shape == (1, 12, 5, 5)
    (attention,) = [module for module in block.layers if isinstance(module, SqueezeExcite)]
    assert isinstance(attention.gate, nn.Hardsigmoid)
    assert sum(isinstance(module, nn.Hardswish) for module in block.layers) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleUnit(8, 12), "out_channels is 12 at stride 1, expected equal to in_channels=8"),
        (lambda: ShuffleUnit(8, 8, stride=2), "expected more than in_channels=8"),
        (lambda: ShuffleUnit(9, 9, groups=2), "groups=2 does not divide in_channels=9"),
        (lambda: ShuffleUnitV2(8, 9, stride=2), "out_channels is 9, expected an even number"),
        (lambda: ShuffleUnitV2(8, 10), "out_channels is 10 at stride 1"),
        (lambda: InvertedResidual(4, 4, expand=0), "expand is 0, expected a positive"),
        (lambda: InvertedResidual(4, 4, activation="hardswsh"), "did you mean 'hardswish'"),
        (lambda: ChannelShuffle(0), "groups is 0"),
    ],
)
def test_impossible_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
