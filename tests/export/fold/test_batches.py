"""Code that mixes the samples of a batch, but leaves one or two of them as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import edgefold

ONE, FIVE = (torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(count)) for count in (1, 5))


class Mixing(nn.Module):
    """Adds to each sample a convolution of another one."""

    def __init__(self, mix: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.mix, self.last = mix, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.own(x) + self.other(self.mix(x)))


@pytest.mark.parametrize("last", [lambda y: y, torch.sigmoid], ids=["module", "functional"])
@pytest.mark.parametrize("mix", [lambda x: torch.cat([x[2:], x[:2]]), lambda x: x.roll(2, 0)], ids=["cat", "roll"])
def test_it_stays(mix: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> None:
    net = Mixing(mix, last).eval()
    folded = edgefold.fold(net, ONE)
    assert any("mixes the samples of a batch" in layer.reason for layer in folded.plan.layers)
    with torch.no_grad():
        for batch in (ONE, FIVE):
            torch.testing.assert_close(folded.module(batch)[0], net(batch), rtol=0, atol=1e-5)
