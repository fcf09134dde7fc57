"""Networks: the published sizes, exchangeable convolutions, widths and resolutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgefold.errors import UsageError
from edgefold.models.blocks import DualConv2d, HetConv2d, MaskedConv2d, hetconv_parameters
from edgefold.models.nets.common import fitting_strides, scaled
from edgefold.models.networks import NETWORKS, build_network
from edgefold.models.packing import effective_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mobilenet_v1", 4_231_976), ("mobilenet_v2", 3_504_872), ("shufflenet_v2", 2_278_604)],
)
def test_published_sizes(name: str, parameters: int) -> None:
    """At the papers' setting the networks have the parameters of the reference implementations."""
    with torch.device("meta"):
        network = build_network(name, num_classes=1000, in_channels=3, resolution=224)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_resnets_have_their_layers() -> None:
    for name, depth in (("resnet20", 20), ("resnet56", 56)):
        with torch.device("meta"):
            network = build_network(name)
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth + 2  # the two 1×1 convolutions of the shortcuts


@pytest.mark.parametrize("name", ["resnet20", "resnet_small", "vgg16"])
def test_convolutions_are_exchanged(name: str) -> None:
    width = {"vgg16": 0.125}.get(name, 8)
    plain = build_network(name, width=width)
    het = build_network(name, width=width, conv="hetconv:4")
    kinds = [type(m) for m in het.modules() if isinstance(m, HetConv2d | nn.Conv2d)]
    assert kinds[0] is not HetConv2d  # the stem stays dense
    layers = [m for m in het.modules() if isinstance(m, HetConv2d)]
    dense = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) == len(dense) - 1
    saved = sum(m.weight.numel() - hetconv_parameters(m.in_channels, m.out_channels, 3, 4) for m in layers)
    assert effective_parameters(plain) - effective_parameters(het) == saved > 0
    x = torch.randn(2, 1, 28, 28)
    assert het.eval()(x).shape == plain.eval()(x).shape == (2, 10)


def test_hetnet_and_dualnet_are_the_same_network() -> None:
    hetnet, dualnet = build_network("hetnet"), build_network("dualnet")
    assert [type(m) for m in hetnet.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)] == [
        type(m) for m in dualnet.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)
    ]
    assert sum(isinstance(m, HetConv2d) for m in hetnet.modules()) == 10
    assert sum(isinstance(m, DualConv2d) for m in dualnet.modules()) == 10
    assert all(m.p == 2 for m in build_network("hetnet", p=2).modules() if isinstance(m, HetConv2d))


def test_groupnet_has_two_group_convolutions() -> None:
    convolutions = [m for m in build_network("groupnet", groups=8).modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 8, 8]


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "shufflenet_v2"])
def test_resolution_decides_the_strides(name: str) -> None:
    with torch.device("meta"):
        for resolution, side in ((28, 4), (32, 4), (64, 4), (224, 7)):
            network = build_network(name, resolution=resolution, width=0.25)
            assert network.get_submodule("features")(torch.empty(1, 1, resolution, resolution)).shape[2:] == (side, side)


def test_width_scales() -> None:
    for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "shufflenet_v2", "vgg16"):
        with torch.device("meta"):
            sizes = [effective_parameters(build_network(name, width=width)) for width in (0.25, 0.5, 1.0)]
        assert sizes == sorted(sizes)
        assert sizes[0] * 6 < sizes[2]


def test_fitting_strides() -> None:
    assert fitting_strides(224, (2, 1, 2, 2, 2, 2)) == (2, 1, 2, 2, 2, 2)
    assert fitting_strides(28, (2, 1, 2, 2, 2, 2)) == (1, 1, 2, 2, 2, 1)
    assert fitting_strides(8, (2, 2, 2)) == (1, 2, 1)


def test_scaled_channels_follow_mobilenets_rule() -> None:
    assert [scaled(c, w) for c, w in ((32, 0.25), (24, 0.35), (100, 1.0), (8, 0.1), (44, 1.0))] == [8, 8, 104, 8, 48]
    for channels in range(8, 400, 4):
        assert scaled(channels, 1.0) >= 0.9 * channels


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    width = 0.25 if name.startswith(("mobile", "shuffle", "vgg")) else 8
    network = build_network(name, width=width)
    network(torch.randn(4, 1, 28, 28)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.count_nonzero(parameter.grad) > 0, key


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("groupnet", {"width": 10}, "groups=4 does not divide width=10"),
        ("dualnet", {"width": 12}, "groups=4 does not divide in_channels=6"),
        ("resnet20", {"conv": "hetcon:4"}, "did you mean 'hetconv'"),
        ("vgg16", {"num_classes": 0}, "num_classes is 0"),
        ("mobilenet_v2", {"resolution": 4}, "resolution is 4, expected at least 8"),
        ("mobilenet_v1", {"width": -1.0}, "width is -1.0"),
        ("vgg16", {"width": math.inf}, "width is inf"),
        ("shufflenet_v2", {"width": math.nan}, "width is nan"),
        ("resnet20", {"resolution": 28.5}, "resolution is 28.5, expected an integer"),
        ("vgg16", {"width": 1e30}, "cannot be made with width=1e"),
        ("hetnet", {"blocks": (1, 0)}, "blocks is 0"),
        ("hetnet", {"in_channels": 0}, "in_channels is 0"),
    ],
)
def test_impossible_arguments(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(name, **kwargs)


def test_masks_are_rebuilt_on_every_device() -> None:
    """A mask is no part of a state; it follows from the arguments."""
    network = build_network("hetnet", width=8)
    assert not [key for key in network.state_dict() if "mask" in key]
    assert all(m.mask.sum() < m.mask.numel() for m in network.modules() if isinstance(m, MaskedConv2d))
