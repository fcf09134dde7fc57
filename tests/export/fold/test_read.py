"""Coefficients that are read off a loop's code: the same as those that are probed, and none where the code does more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgefold.export.fold import read as reading
from edgefold.export.fold.attempt import LARGE
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.kernel import FoldedConv, Kernel

C = 34  # C * C one-channel convolutions are more than LARGE ops


class Loop(nn.Module):
    """One-channel convolutions of two kinds, with biases; ``turn`` is applied to each term."""

    def __init__(self, turn: Callable[[Tensor], Tensor], stride: int = 1, dilation: int = 1, *, named: bool = False) -> None:
        super().__init__()
        self.turn, self.named, self.bias = turn, named, nn.Parameter(torch.randn(C))
        self.kernels = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(1, 1, 3, stride, dilation, dilation, bias=m == 5)
                if (n + m) % 4 == 0
                else nn.Conv2d(1, 1, 1, stride, bias=False)
                for m in range(C)
            )
            for n in range(C)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in self.kernels:
            total: Tensor | None = None
            for m, conv in enumerate(row.children()):
                term = self.turn(conv(x[:, m : m + 1]))
                total = term if total is None else total + term
            assert total is not None
            rows.append(total)
        return (torch.cat(rows, dim=1) if self.named else torch.cat(rows, 1)) + self.bias.view(1, -1, 1, 1)


def fold(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, int]:
    """The folded module, and how often a kernel was read."""
    read: list[Kernel | None] = []
    own = reading.kernel_of

    def watched(*args: Any) -> Kernel | None:
        read.append(own(*args))
        return read[-1]

    monkeypatch.setattr("edgefold.export.fold.evidence.kernel_of", watched)
    x = torch.randn(2, C, 7, 7)
    assert 3 * C * C > LARGE
    tree = fold_tree(module.eval(), (x,), {})
    with torch.no_grad():
        expected, found = module(x), tree.module(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    return tree.module, sum(kernel is not None for kernel in read)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_loop_is_read_exactly(stride: int, dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Loop(lambda y: y, stride, dilation)
    folded, read = fold(module, monkeypatch)
    assert read == 1
    assert isinstance(folded, FoldedConv)
    conv = list(module.kernels[3].children())[5]
    assert isinstance(conv, nn.Conv2d)
    assert torch.equal(folded.weight[3, 5], conv.weight[0, 0])
    assert folded.kernel.dilation == (dilation, dilation)


def test_a_concatenation_may_name_its_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fold(Loop(lambda y: y, named=True), monkeypatch)[1] == 1


@pytest.mark.parametrize(
    "turn",
    [
        lambda y: 2 * y,
        lambda y: y.mul_(2.0),
        lambda y: y + 1.0,
    ],
)
def test_what_does_more_is_probed(turn: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fold(Loop(turn), monkeypatch)[1] == 0


def test_a_clamp_keeps_it_from_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, read = fold(Loop(lambda y: y.clamp(-1e6, 1e6)), monkeypatch)
    assert read == 0
    assert not isinstance(folded, FoldedConv)
