"""Networks that write into the layers of their blocks: none of these blocks folds, and the network stays as it is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import EdgefoldError
from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import fold_tree

IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
FAR = 1e6  # no example shows the difference


class Block(nn.Module):
    """A convolution and a norm, with a scale that is a Python number."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = 1.0
        self.register_buffer("offset", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) * self.scale + self.offset
        return y


class Writer(nn.Module):
    """Does something to its block before it calls it."""

    def __init__(self, step: Callable[[Block, Tensor], object], *, late: bool = False) -> None:
        super().__init__()
        self.block = Block()
        self.step, self.late = step, late

    def forward(self, x: Tensor) -> Tensor:
        if not self.late:
            self.step(self.block, x)
        y: Tensor = self.block(x)
        if self.late:
            self.step(self.block, x)
        return y.relu()


def rare(x: Tensor) -> Tensor:
    """Zero for the examples."""
    return torch.relu(x.amax() - FAR)


def _statistics(block: Block, x: Tensor) -> None:
    assert block.norm.running_mean is not None
    block.norm.running_mean.copy_(rare(x).expand(4))


def _factor(block: Block, x: Tensor) -> None:
    block.conv.weight.mul_(1 + rare(x))


def _data(block: Block, x: Tensor) -> None:
    block.conv.weight.data = block.conv.weight * (1 + rare(x))


def _data_in_place(block: Block, x: Tensor) -> None:
    block.conv.weight.data.mul_(1 + rare(x))


def _buffer_in_place(block: Block, x: Tensor) -> None:
    block.offset.data.copy_(rare(x).expand(4, 1, 1))


def _parameter(block: Block, x: Tensor) -> None:
    block.conv.weight = nn.Parameter(block.conv.weight * (1 + rare(x)))


def _number(block: Block, x: Tensor) -> None:
    block.scale = 1.0 + float(rare(x))


def _number_of_a_layer(block: Block, x: Tensor) -> None:
    block.norm.eps = 2e-5 + float(rare(x))


WRITES = [_statistics, _factor, _data, _data_in_place, _buffer_in_place, _parameter, _number, _number_of_a_layer]


def state_of(net: Writer) -> dict[str, Tensor]:
    numbers = {"eps": torch.tensor(net.block.norm.eps), "scale": torch.tensor(net.block.scale)}
    return {name: value.clone() for name, value in net.state_dict().items()} | numbers


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", WRITES)
def test_a_block_that_is_written_from_outside_does_not_fold(step: Callable[[Block, Tensor], object], late: bool) -> None:
    torch.manual_seed(0)
    net = Writer(step, late=late).eval()
    before, weight = state_of(net), net.block.conv.weight
    tree = fold_tree(net, (IMAGE,), {})
    assert all(decision.folded is None for decision in tree.decisions)
    assert tree.decisions
    after = state_of(net)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert net.block.conv.weight is weight


@pytest.mark.parametrize("step", WRITES)
def test_a_network_that_writes_into_its_block_is_captured_right_or_refused(step: Callable[[Block, Tensor], object]) -> None:
    torch.manual_seed(0)
    net = Writer(step).eval()
    try:
        folded = fold_module(net, IMAGE).module
    except EdgefoldError:
        return
    for image in (IMAGE, IMAGE + 2 * FAR):
        found = folded(image)[0]
        with torch.no_grad():
            assert torch.allclose(found, net(image), rtol=1e-4, atol=1e-4), step.__name__


@pytest.mark.parametrize("step", [_statistics, _factor, _number])
def test_a_value_that_is_given_back_counts_too(step: Callable[[Block, Tensor], object]) -> None:
    class Borrows(Writer):
        def forward(self, x: Tensor) -> Tensor:
            weight, scale = self.block.conv.weight.clone(), self.block.scale
            assert self.block.norm.running_mean is not None
            mean = self.block.norm.running_mean.clone()
            self.step(self.block, x)
            y: Tensor = self.block(x)
            self.block.conv.weight.copy_(weight)
            self.block.norm.running_mean.copy_(mean)
            self.block.scale = scale
            return y.relu()

    def shifted(block: Block, x: Tensor) -> None:
        step(block, x + 2 * FAR)

    tree = fold_tree(Borrows(shifted).eval(), (IMAGE,), {})
    assert all(decision.folded is None for decision in tree.decisions)


def test_a_block_that_keeps_a_value_for_its_own_call_folds() -> None:
    class Scratch(Block):
        def __init__(self) -> None:
            super().__init__()
            self.held: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.held = self.conv(x)
            y: Tensor = self.norm(self.held)
            self.held = None
            return y

    net = nn.Sequential(Scratch(), nn.ReLU()).eval()
    assert [decision.folded is not None for decision in fold_tree(net, (IMAGE,), {}).decisions if decision.name] == [True]


def test_a_network_that_counts_its_calls_in_a_norm_is_not_changed() -> None:
    class Follows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            assert self.norm.running_mean is not None
            self.norm.running_mean.add_(x.mean((0, 2, 3)))
            y: Tensor = self.norm(x)
            return y

    net = Follows().eval()
    with pytest.raises(EdgefoldError, match="in each call"):
        fold_module(net, IMAGE)
    assert net.norm.running_mean is not None
    assert not bool(net.norm.running_mean.any())
