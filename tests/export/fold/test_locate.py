"""The shift test that spares probes: true for whatever is a convolution, false for what moves pixels otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgefold.export.fold.locate import moves

WEIGHT = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SQUARE = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.conv2d(x, WEIGHT, padding=1),
        lambda x: F.conv2d(x, WEIGHT, stride=3),
        lambda x: F.conv2d(x, WEIGHT, dilation=9),
        lambda x: F.conv2d(F.pad(x, (9, 9, 9, 9), mode="reflect"), WEIGHT, dilation=9),
        lambda x: F.conv2d(F.pad(x, (2, 0, 1, 0), mode="circular"), WEIGHT, stride=2),
        lambda x: x.mean(dim=(2, 3), keepdim=True),
    ],
)
def test_convolutions_move(f: Callable[[Tensor], Tensor]) -> None:
    assert moves(f, (1, 4, 24, 24), torch.float64)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.conv2d(x, WEIGHT, padding=1).permute(0, 2, 3, 1),
        lambda x: F.conv2d(x, WEIGHT, padding=1).transpose(2, 3),
        lambda x: x @ SQUARE,
        lambda x: x * SQUARE,
        lambda x: F.conv2d(x, WEIGHT, padding=1).flip(3),
    ],
)
def test_other_maps_do_not(f: Callable[[Tensor], Tensor]) -> None:
    assert not moves(f, (1, 4, 24, 24), torch.float64)


def test_short_axes_tell_nothing() -> None:
    assert moves(lambda x: x.flip(3), (1, 4, 8, 8), torch.float64)
