"""Pruning removes what it says and nothing else, keeps every structure, and leaves the original alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import MissingExtraError, ModelError, UnsupportedError, UsageError
from edgefold.models.blocks import (
    ChannelLocalConv2d,
    EfficientChannelAttention,
    HetConv2d,
    LocallyConnected2d,
    SpatialAttention,
    hetconv_mask,
)
from edgefold.models.count import count_cost
from edgefold.models.networks import build_network
from edgefold.models.packing import pack_state, unpack_state
from edgefold.models.prune import MAX_JUMP, ROUND_TO, macs_target, prune_channels, prune_iteratively, prune_to_cost
from edgefold.models.prune_graph import channel_axes, remove_channels

pytest.importorskip("torch_pruning", reason="the extra prune is not installed")

X = (torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)
NETWORKS = [
    ("hetnet", {"width": 16, "blocks": (2, 1)}),
    ("dualnet", {"width": 16, "blocks": (2, 1)}),
    ("groupnet", {"width": 16}),
    ("mobilenet_v1", {"width": 0.25}),
    ("mobilenet_v2", {"width": 0.25}),
    ("resnet20", {"width": 8, "conv": "hetconv:2"}),
]


def network(name: str, kwargs: dict[str, object]) -> nn.Module:
    """A network whose norms do something, and whose channels can be recognised by their running means."""
    torch.manual_seed(0)
    module = build_network(name, **kwargs).eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            assert norm.running_mean is not None
            norm.running_mean.copy_(torch.arange(norm.num_features) * 1e-3)
    return module


def silenced(module: nn.Module, pruned: nn.Module) -> nn.Module:
    """``module`` with the channels that ``pruned`` lacks set to zero at every norm."""
    quiet = copy.deepcopy(module)
    smaller = dict(pruned.named_modules())
    for name, norm in quiet.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            kept = torch.round(smaller[name].running_mean / 1e-3).long()
            gone = torch.ones(norm.num_features, dtype=torch.bool)
            gone[kept] = False
            norm.weight.data[gone] = 0
            norm.bias.data[gone] = 0
    return quiet


@pytest.mark.parametrize(("name", "kwargs"), NETWORKS)
def test_a_pruned_network_is_the_original_with_silent_channels(name: str, kwargs: dict[str, object]) -> None:
    module = network(name, kwargs)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    pruned = prune_channels(module, X, macs_target(module, X, 0.6))
    assert 0.3 < pruned.report.macs / pruned.report.macs_before <= 0.6
    assert pruned.report.layers
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(*X), silenced(module, pruned.module)(*X), rtol=1e-4, atol=1e-4)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_attention_and_hidden_layers_shrink_too() -> None:
    module = network("mobilenet_v3", {"width": 0.35})
    pruned = prune_channels(module, X, macs_target(module, X, 0.5))
    assert pruned.module(*X).shape == (2, 10)
    names = {row.name for row in pruned.report.layers}
    assert "head.0" in names
    assert any(".reduce" in name for name in names)


def test_the_report_counts_what_is_there() -> None:
    module = network("hetnet", {"width": 16, "blocks": (1, 1)})
    report = prune_channels(module, X, macs_target(module, X, 0.7)).report
    cost = count_cost(module, X)
    assert (report.macs_before, report.parameters_before) == (cost.macs, cost.parameters)
    assert report.macs < report.macs_before
    assert report.parameters < report.parameters_before
    assert report.skipped == ()
    assert all(row.out_after <= row.out_before and row.in_after <= row.in_before for row in report.layers)


@pytest.mark.parametrize("p", [2, 4])
def test_hetconvs_stay_hetconvs(p: int) -> None:
    module = network("hetnet", {"width": 16, "p": p, "blocks": (2, 1)})
    pruned = prune_channels(module, X, macs_target(module, X, 0.4)).module
    sizes = set()
    for layer in pruned.modules():
        if isinstance(layer, HetConv2d):
            assert torch.equal(layer.mask.bool(), hetconv_mask(layer.in_channels, layer.out_channels, 3, p))
            sizes.add((layer.in_channels, layer.out_channels))
    assert any(size not in {(8, 16), (16, 16), (16, 32), (32, 32)} for size in sizes)
    again = copy.deepcopy(pruned)  # a packed state fits what has the same sizes
    unpack_state(again, pack_state(pruned), "pruned")


def test_group_convolutions_stay_even() -> None:
    module = network("groupnet", {"width": 16, "groups": 4})
    pruned = prune_channels(module, X, macs_target(module, X, 0.5)).module
    for layer in pruned.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            assert layer.groups == 4
            assert layer.in_channels % 4 == layer.out_channels % 4 == 0


def test_the_least_important_unit_goes_first() -> None:
    module = network("hetnet", {"width": 16, "p": 4, "blocks": (1,)})
    conv1, conv2 = module.get_submodule("features.1.conv1"), module.get_submodule("features.1.conv2")
    assert isinstance(conv1, HetConv2d)
    assert isinstance(conv2, HetConv2d)
    bn1 = module.get_submodule("features.1.bn1")
    with torch.no_grad():
        for channel in (8, 9, 10, 11):
            conv1.weight[channel] *= 0.01
            conv2.weight[:, channel] *= 0.01
            bn1.get_parameter("weight")[channel] *= 0.01
    pruned = prune_channels(module, X, macs_target(module, X, 0.97))
    row = next(row for row in pruned.report.layers if row.name == "features.1.conv1")
    assert row.out_after < row.out_before
    kept = torch.round(pruned.module.get_submodule("features.1.bn1").get_buffer("running_mean") / 1e-3).long().tolist()
    assert not set(kept) & {8, 9, 10, 11}


def test_concatenations_are_followed() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 8, 3)
            self.bn = nn.BatchNorm2d(14)
            self.out = nn.Conv2d(14, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.bn(torch.cat([self.a(x), self.b(x)], 1)).relu())
            return y

    module = Fork().eval()
    nn.init.normal_(module.bn.running_mean)  # type: ignore[arg-type]  # the norm has statistics
    pruned = remove_channels(module, X, {"a": [1, 4], "b": [0, 7]})
    kept = [0, 2, 3, 5, *(6 + i for i in range(1, 7))]
    assert torch.equal(pruned.get_parameter("out.weight"), module.out.weight[:, kept])
    with torch.no_grad():
        module.bn.weight[[1, 4, 6, 13]] = 0
        module.bn.bias[[1, 4, 6, 13]] = 0
        torch.testing.assert_close(pruned(*X), module(*X))


def test_what_cannot_be_pruned_is_named() -> None:
    local = nn.Sequential(nn.Conv2d(1, 8, 3), ChannelLocalConv2d(8, 8, 3, group_size=3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    axes, skipped = channel_axes(local, X)
    assert not axes
    assert any("'1' is a ChannelLocalConv2d" in reason for reason in skipped)
    mixed = nn.Sequential(HetConv2d(1, 8, 3, p=2), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    axes, skipped = channel_axes(mixed, X)
    assert [axis.root for axis in axes] == ["1"]
    assert skipped == ("HetConv and group convolutions share this axis ('0')",)
    unshared = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), LocallyConnected2d(4, 4, 3, input_size=26), nn.Conv2d(4, 2, 1))
    axes, skipped = channel_axes(unshared.eval(), X)
    assert not axes
    assert any("meets '2', of which the channels are not known" in reason for reason in skipped)


class Weighed(nn.Module):
    """A gate of anyone's: a kernel along the means of the channels, written with a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(x.mean((2, 3)).view(len(x), 1, -1)).sigmoid()
        y: Tensor = x * weights.view(len(x), -1, 1, 1)
        return y


@pytest.mark.parametrize("conv", ["standard+eca", "standard+cbam", "standard+spatial"])
def test_attention_without_channels_of_its_own_is_passed_through(conv: str) -> None:
    module = network("resnet_small", {"width": 16, "blocks": (1, 1), "conv": conv})
    gates = [layer for layer in module.modules() if isinstance(layer, EfficientChannelAttention | SpatialAttention)]
    assert gates
    with torch.no_grad():
        for gate in gates:
            gate.conv.weight.mul_(3)  # what is far from an identity
    pruned = prune_channels(module, X, macs_target(module, X, 0.6))
    assert pruned.report.skipped == ()
    assert pruned.report.macs <= 0.6 * pruned.report.macs_before
    kept = [layer for layer in pruned.module.modules() if isinstance(layer, EfficientChannelAttention | SpatialAttention)]
    assert len(kept) == len(gates)
    for before, after in zip(gates, kept, strict=True):
        assert torch.equal(before.conv.weight, after.conv.weight)


def test_a_gate_of_anyone_is_passed_through() -> None:
    """The gate weighs channels by their neighbours, so those at the end go: beyond them the gate sees zeros in any case."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 32, 3), Weighed(), nn.ReLU(), nn.Conv2d(32, 2, 1)).eval()
    axes, skipped = channel_axes(module, X)
    assert ([axis.root for axis in axes], skipped) == (["0"], ())
    pruned = remove_channels(module, X, {"0": list(range(16, 32))})
    silent = copy.deepcopy(module)
    with torch.no_grad():
        silent.get_parameter("0.weight")[16:] = 0
        silent.get_parameter("0.bias")[16:] = 0
        torch.testing.assert_close(pruned(*X), silent(*X), rtol=1e-5, atol=1e-5)


def test_a_kernel_along_the_channels_outside_a_gate_leaves_its_axis_whole() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.along, self.b = nn.Conv2d(1, 32, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(32, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.along(y.mean((2, 3)).unsqueeze(1)).squeeze(1)
            found: Tensor = self.b(y * z[:, :, None, None])
            return found

    axes, skipped = channel_axes(Mixed().eval(), X)
    assert axes == ()
    assert any("meets 'along', which does not take it as its channels" in reason for reason in skipped)


def test_outputs_are_never_pruned() -> None:
    axes, _ = channel_axes(network("hetnet", {"width": 8, "blocks": (1,)}), X)
    assert axes
    assert "head" not in {axis.root for axis in axes}
    only = nn.Sequential(nn.Conv2d(1, 4, 3)).eval()
    with pytest.raises(UsageError, match="target cannot be met"):
        prune_channels(only, X, macs_target(only, X, 0.5))


def test_keep_bounds_every_axis() -> None:
    module = network("hetnet", {"width": 16, "blocks": (1, 1)})
    with pytest.raises(UsageError, match=r"keep=0\.9 at most"):
        prune_channels(module, X, macs_target(module, X, 0.2), keep=0.9)
    report = prune_channels(module, X, macs_target(module, X, 0.5), keep=0.5).report
    assert all(row.out_after >= 0.5 * row.out_before for row in report.layers)


@pytest.mark.parametrize(("name", "kwargs"), [("vgg16", {"width": 0.25}), ("hetnet", {"width": 32, "blocks": (1, 1)})])
def test_channel_counts_are_what_runtimes_compute_in_blocks(name: str, kwargs: dict[str, object]) -> None:
    module = network(name, kwargs)
    report = prune_channels(module, X, macs_target(module, X, 0.5)).report
    assert report.round_to == ROUND_TO
    assert 0.4 < report.macs / report.macs_before <= 0.5
    cut = [row for row in report.layers if row.out_after < row.out_before]
    assert cut
    assert all(row.out_after % ROUND_TO == 0 for row in cut)
    free = prune_channels(module, X, macs_target(module, X, 0.5), round_to=1).report
    assert free.round_to == 1
    if name != "hetnet":  # whose parts make every count a multiple of 4
        assert any(row.out_after % 4 for row in free.layers if row.out_after < row.out_before)


def test_the_step_of_channel_counts_gives_way_to_the_target() -> None:
    """Layers of 8 and 12 channels, of which 16 leaves all and 8 only a coarse choice; the target is met all the same."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 2, 1)).eval()
    report = prune_channels(small, X, macs_target(small, X, 0.7)).report
    assert report.macs <= 0.7 * report.macs_before
    assert report.macs > (0.7 - MAX_JUMP) * report.macs_before
    assert report.round_to in (1, 2)
    mildest = prune_channels(small, X, macs_target(small, X, 0.08)).report  # never empties a layer
    assert all(row.out_after >= 1 for row in mildest.layers)


def test_a_measured_target() -> None:
    """A target is any question to the module; here the size of its largest layer stands for a latency."""
    module = network("vgg16", {"width": 0.125})
    sizes: list[int] = []

    def small(pruned: nn.Module) -> bool:
        sizes.append(max(parameter.numel() for parameter in pruned.parameters()))
        return sizes[-1] <= 20_000

    pruned = prune_channels(module, X, small).module
    assert max(parameter.numel() for parameter in pruned.parameters()) <= 20_000
    assert len(sizes) < 15  # a bisection


def test_iterative_pruning_reaches_the_target_in_equal_ratios() -> None:
    module = network("hetnet", {"width": 16, "blocks": (1, 1)})
    start = count_cost(module, X).macs
    shares: list[float] = []

    def fine_tune(current: nn.Module, round_: int) -> None:
        assert round_ == len(shares) + 1
        shares.append(count_cost(current, X).macs / start)
        current.train()

    pruned = prune_iteratively(module, X, 0.5, 2, fine_tune)
    assert not pruned.module.training
    assert shares[0] <= 0.5**0.5 < shares[0] + 0.1
    assert pruned.report.macs / start == shares[1] <= 0.5
    assert pruned.report.macs_before == start


def test_rounds_to_a_cost_that_is_measured() -> None:
    """A cost that is no count: each round ends at most at its part of the way, the last one at the goal."""
    module = network("hetnet", {"width": 16, "blocks": (1, 1)})

    def cost(net: nn.Module) -> float:
        return 7.0 * sum(parameter.numel() for parameter in net.parameters())

    costs: list[float] = []
    start = cost(module)
    pruned = prune_to_cost(module, X, cost, start * 0.25, 2, lambda net, _: costs.append(cost(net)))
    assert start * 0.25 < costs[0] <= start * 0.5
    assert costs[1] == cost(pruned.module) <= start * 0.25
    assert len(pruned.removed) == 2
    untouched = prune_to_cost(module, X, cost, start, 1, lambda *_: None)
    assert untouched.removed == ()


def test_shuffles_are_refused() -> None:
    module = build_network("shufflenet_v2", width=0.25).eval()
    with pytest.raises(UnsupportedError, match="as a channel shuffle does"):
        prune_channels(module, X, macs_target(module, X, 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: macs_target(m, X, 1.0), r"1\.0 of the multiply-accumulates"),
        (lambda m: prune_channels(m, X, lambda _: True, keep=0), "keep is 0"),
        (lambda m: prune_channels(m, X, lambda _: True, round_to=0), "round_to is 0"),
        (lambda m: prune_iteratively(m, X, 0.5, 0, lambda *_: None), "rounds is 0"),
    ],
)
def test_impossible_options(call: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)))


@pytest.mark.parametrize("other", [lambda _: torch.zeros(3), lambda x: 1 // (len(x) - len(x))], ids=["shape", "division"])
def test_a_network_that_does_not_run(other: Callable[[Tensor], Tensor]) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) + other(x)
            return y

    with pytest.raises(ModelError, match="Broken cannot be traced for pruning"):
        channel_axes(Broken(), X)


def test_torch_pruning_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"'torch-pruning'.*edgefold\[prune\]"):
        channel_axes(nn.Sequential(nn.Conv2d(1, 2, 3)), X)


def test_an_error_without_text_after_pruning_is_named_by_its_type() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)
            self.head = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.conv.out_channels < 8:
                raise RuntimeError
            found: Tensor = self.head(self.conv(x))
            return found

    with pytest.raises(ModelError, match="does not run after channels were removed: RuntimeError"):
        remove_channels(Picky().eval(), X, {"conv": [0]})
