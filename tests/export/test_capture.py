"""What capture says about networks that torch cannot make a graph of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import UnsupportedError
from edgefold.export.capture import capture


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.meta(x)
        return y


class _Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_part_with_a_name_that_graphs_keep_is_to_be_renamed() -> None:
    with pytest.raises(UnsupportedError, match="rename its part 'meta'"):
        capture(_Named().eval(), torch.randn(1, 3))


def test_control_flow_is_to_be_removed() -> None:
    with pytest.raises(UnsupportedError, match="remove control flow"):
        capture(_Deciding().eval(), torch.randn(1, 3))
