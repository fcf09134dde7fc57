"""Costs are counted against torch's own counter and the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgefold.models.blocks import HetConv2d, LocallyConnected2d, hetconv_macs
from edgefold.models.count import count_cost
from edgefold.models.networks import build_network


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet_v2", "resnet20", "groupnet", "dualnet"])
def test_dense_networks_agree_with_torchs_counter(name: str) -> None:
    module = build_network(name).eval()
    x = torch.randn(2, 1, 28, 28)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    cost = count_cost(module, (x,))
    assert cost.macs == counter.get_total_flops() // 4  # 2 FLOPs a multiply-accumulate, 2 samples
    assert cost.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_masked_and_unshared_layers_count_their_weights() -> None:
    module = nn.Sequential(HetConv2d(4, 8, 3, p=2, padding=1, bias=False), LocallyConnected2d(8, 2, 3, bias=False, input_size=6))
    cost = count_cost(module, (torch.randn(3, 4, 6, 6),))
    assert [layer.macs for layer in cost.layers] == [hetconv_macs(4, 8, 3, 2, (6, 6)), 16 * 2 * 8 * 9]
    assert cost.macs == sum(layer.macs for layer in cost.layers)
    assert cost.layers[0].name == "0"
    assert cost.layers[0].kind == "HetConv2d"


def test_transposed_convolutions_and_linear_layers() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.Flatten(), nn.Linear(6 * 64, 5))
    cost = count_cost(module, (torch.randn(1, 4, 4, 4),))
    assert [layer.macs for layer in cost.layers] == [4 * 16 * 3 * 4, 6 * 64 * 5]


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    layer = nn.Conv2d(2, 2, 1)
    cost = count_cost(nn.Sequential(layer, nn.ReLU(), layer), (torch.randn(1, 2, 3, 3),))
    assert cost.macs == 2 * 4 * 9
    assert cost.parameters == 6


def test_nothing_changes() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    module[2].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    count_cost(module, (torch.randn(2, 1, 5, 5),))
    assert module.training
    assert module[1].training
    assert not module[2].training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not module[0]._forward_hooks
