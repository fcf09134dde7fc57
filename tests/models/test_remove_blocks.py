"""Block removal finds the blocks that an identity can replace, and takes those that matter least."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgefold.errors import UsageError
from edgefold.models.networks import build_network
from edgefold.models.remove_blocks import removable_blocks, remove_blocks, remove_blocks_in_rounds

X = (torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


def hetnet() -> nn.Module:
    torch.manual_seed(0)
    return build_network("hetnet", width=8, blocks=(3, 2)).eval()


def test_only_blocks_that_keep_the_shape() -> None:
    assert removable_blocks(hetnet(), X) == ("features.2", "features.3", "features.5")  # not the strided 1 and 4
    assert removable_blocks(build_network("groupnet"), X) == ()


def test_the_least_important_goes() -> None:
    module = hetnet()
    assert isinstance(module.get_submodule("features.3.bn2"), nn.BatchNorm2d)
    nn.init.zeros_(module.get_submodule("features.3.bn2").get_parameter("weight"))  # this block does nothing
    with torch.no_grad():
        reference = module(*X)

    def closeness(candidate: nn.Module) -> float:
        assert not candidate.training
        with torch.no_grad():
            return -float((candidate(*X) - reference).square().mean())

    shortened = remove_blocks(module, X, closeness, 2)
    assert shortened.quality_before == 0
    assert shortened.removals[0].name == "features.3"
    assert shortened.removals[0].quality == pytest.approx(0, abs=1e-10)
    assert shortened.removals[1].quality < 0
    assert isinstance(shortened.module.get_submodule("features.3"), nn.Identity)
    assert not isinstance(module.get_submodule("features.3"), nn.Identity)
    assert closeness(shortened.module) == shortened.removals[1].quality
    size = sum(p.numel() for p in shortened.module.parameters())
    assert size < sum(p.numel() for p in module.parameters())


def test_rounds_remove_some_each_and_train_between() -> None:
    module = hetnet()
    left: list[int] = []

    def fine_tune(net: nn.Module, index: int) -> None:
        assert index == len(left) + 1
        left.append(len(removable_blocks(net, X)))
        net.train()

    shortened = remove_blocks_in_rounds(module, X, lambda net: float(len(list(net.modules()))), 3, 2, fine_tune)
    assert left == [2, 0]
    assert len({removal.name for removal in shortened.removals}) == 3
    assert shortened.quality_before == len(list(module.modules()))
    assert not shortened.module.training
    with pytest.raises(UsageError, match="removed in 3 rounds, expected 1 to 2"):
        remove_blocks_in_rounds(module, X, lambda _: 0.0, 2, 3, fine_tune)
    with pytest.raises(UsageError, match="has 3 removable ones"):
        remove_blocks_in_rounds(module, X, lambda _: 0.0, 4, 2, fine_tune)
    assert left == [2, 0]  # nothing was trained


@pytest.mark.parametrize("count", [0, 4])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(UsageError, match=rf"{count} blocks are to be removed, but Classifier has 3 removable ones"):
        remove_blocks(hetnet(), X, lambda _: 0.0, count)
