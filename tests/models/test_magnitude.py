"""Magnitude pruning zeroes the smallest weights, keeps them zero in training, and reports the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks import HetConv2d
from edgefold.models.magnitude import finish, magnitude_prune, prune_in_rounds, sparsity_report


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), HetConv2d(8, 8, 3, p=4), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


def weight(module: nn.Module, name: str) -> Tensor:
    """The weight of a layer as the layer uses it, parametrized or not."""
    found = module.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found.detach()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_share_is_the_one_asked_for(sparsity: float) -> None:
    module = network()
    report = magnitude_prune(module, sparsity)
    assert report.weights == 8 * 9 + 8 * (2 * 9 + 6) + 4 * 128
    assert report.sparsity == pytest.approx(sparsity, abs=0.002)
    assert report == sparsity_report(module)
    assert [layer.name for layer in report.layers] == ["0", "3", "5"]


def test_the_smallest_go_and_the_rest_stays() -> None:
    module = network()
    before = weight(module, "5").clone()
    magnitude_prune(module, 0.6)
    after = weight(module, "5")
    gone = after == 0
    assert torch.equal(after[~gone], before[~gone])
    assert 0 < int(gone.sum()) < gone.numel()
    assert before[gone].abs().max() < before[~gone].abs().min()


def test_no_output_is_cut_off() -> None:
    module = network()
    with torch.no_grad():
        weight(module, "0")[3] *= 1e-6
    magnitude_prune(module, 0.95)
    for name in ("0", "3", "5"):
        assert torch.all(weight(module, name).flatten(1).count_nonzero(1) > 0)


def test_zeros_survive_training_and_become_plain_weights() -> None:
    module = network()
    magnitude_prune(module, 0.7)
    zeros = sparsity_report(module).zeros
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    assert sparsity_report(module).zeros == zeros
    finish(module)
    assert sparsity_report(module).zeros == zeros
    assert set(module.state_dict()) == set(network().state_dict())
    finish(module)  # twice is once
    x = torch.randn(1, 1, 8, 8)
    again = network()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.eval()(x), module.eval()(x))


def test_rounds_leave_equal_shares() -> None:
    module = network()
    seen: list[float] = []

    def fine_tune(net: nn.Module, index: int) -> None:
        assert index == len(seen) + 1
        seen.append(sparsity_report(net).sparsity)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.01)  # what is zero already must stay so

    report = prune_in_rounds(module, 0.75, 2, fine_tune)
    assert seen == pytest.approx([0.5, 0.75], abs=0.002)
    assert report == sparsity_report(module)
    assert report.sparsity == seen[1]
    assert type(module[0]) is nn.Conv2d  # without masks
    with pytest.raises(UsageError, match="rounds is 0"):
        prune_in_rounds(module, 0.5, 0, fine_tune)


def test_what_is_outside_a_mask_does_not_count() -> None:
    layer = nn.Sequential(HetConv2d(8, 8, 3, p=8))
    assert sparsity_report(layer).zeros == 0
    assert sparsity_report(layer).weights == 8 * 9 + 8 * 7


def test_impossible_options() -> None:
    with pytest.raises(UsageError, match=r"sparsity is 1\.0"):
        magnitude_prune(network(), 1.0)
    module = network()
    magnitude_prune(module, 0.2)
    with pytest.raises(UsageError, match="pruned by magnitude already"):
        magnitude_prune(module, 0.4)
