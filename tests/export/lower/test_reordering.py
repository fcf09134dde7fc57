"""Channel orders are absorbed by weights: how many gathers real patterns leave."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.lower.costs import CostModel
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering
from edgefold.models.blocks import ShuffleUnit
from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.nets.hetnet import hetnet
from edgefold.models.nets.shufflenet_v2 import shufflenet_v2

MOVES = ("index_select", "transpose", "permute", "slice")


def het(channels: int, out: int, p: int = 4, stride: int = 1) -> HetConv2d:
    return HetConv2d(channels, out, 3, stride, 1, p=p)


def randomize(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            assert part.running_mean is not None
            nn.init.normal_(part.running_mean)
    return module.double().eval()


def lowered_ops(
    net: nn.Module, x: Tensor, lowering: Lowering | Literal["auto"] = Lowering.GROUPED, costs: CostModel | None = None
) -> tuple[int, list[str]]:
    """Lowers, checks that the outputs stay, and returns the gathers and all ops."""
    randomize(net)
    x = x.double()
    program = capture(net, x)
    lowered = lower(program, format=Format.EXECUTORCH, precision=Precision.FP32, lowering=lowering, costs=costs)
    expected = net(x)
    for one, two in zip((expected,) if isinstance(expected, Tensor) else expected, lowered.program.graph(x), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
    nodes = [node for node in lowered.program.graph.graph.nodes if node.op == "call_function"]
    names = [str(node.target).split(".")[1] if node.target is not operator.getitem else "getitem" for node in nodes]
    assert names.count("index_select") == lowered.plan.gathers
    return lowered.plan.gathers, names


@pytest.mark.parametrize("p", [4, *(pytest.param(p, marks=pytest.mark.slow) for p in (2, 8))])
def test_a_residual_network_of_hetconvs_needs_no_reordering(p: int) -> None:
    gathers, ops = lowered_ops(hetnet(width=16, p=p, blocks=(2, 1, 1)), torch.randn(1, 1, 16, 16))
    assert gathers == 0
    assert not [op for op in ops if op in MOVES]
    assert ops.count("add") == 8 + 4  # one a HetConv, one a block


class Squeezed(nn.Module):
    """SE, PReLU, BatchNorm, depthwise, pooling and flatten + linear between HetConvs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 3), het(16, 16), het(16, 32, stride=2)
        self.norm, self.act = nn.BatchNorm2d(16), nn.PReLU(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.reduce, self.expand = nn.Linear(16, 4), nn.Linear(4, 16)
        self.gamma = nn.Parameter(torch.randn(32, 1, 1))
        self.head = nn.Linear(32 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.one(F.relu6(self.stem(x)))))
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3)))))).unsqueeze(-1).unsqueeze(-1)
        y = self.depthwise(y * gate) + y
        y = F.max_pool2d(F.hardswish(self.two(y)) * self.gamma, 2)
        return self.head(y.flatten(1))


def test_per_channel_ops_carry_the_order_through() -> None:
    gathers, ops = lowered_ops(Squeezed(), torch.randn(1, 3, 10, 10))
    assert gathers == 0
    assert "index_select" not in ops


class Dense(nn.Module):
    """Concats of concats, as in DenseNet, read by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), het(8, 8), nn.Conv2d(16, 8, 1)
        self.three, self.head = het(8, 16), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = torch.cat([a, self.one(a)], 1)
        c = torch.cat([b, F.relu(self.three(self.two(b)))], 1)
        return self.head(c).mean((2, 3))


def test_concats_are_block_permutations() -> None:
    assert lowered_ops(Dense(), torch.randn(1, 3, 6, 6))[0] == 0


class Shuffled(nn.Module):
    """Channel shuffles between plain, depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.depthwise, self.two = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 4, 1)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(F.relu(self.one(x)), 3)
        return self.two(F.channel_shuffle(self.depthwise(y), 4)).mean((2, 3))


def test_channel_shuffles_are_absorbed() -> None:
    gathers, ops = lowered_ops(Shuffled(), torch.randn(1, 3, 6, 6), "auto")
    assert gathers == 0
    assert ops == ["conv2d", "relu", "conv2d", "conv2d", "mean"]


class Ends(nn.Module):
    def __init__(self, *, grouped: bool = False) -> None:
        super().__init__()
        self.conv = het(8, 8)
        self.last = nn.Conv2d(8, 8, 1, groups=2) if grouped else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x))


def test_a_graph_end_costs_one_gather() -> None:
    assert lowered_ops(Ends(), torch.randn(1, 8, 5, 5))[0] == 2
    assert lowered_ops(Ends(), torch.randn(1, 8, 5, 5), "auto")[0] <= 2


class Residual(nn.Module):
    """Additions to the graph's own input, many times."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([het(8, 8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(x + conv(x))
        return x


def test_a_residual_chain_costs_one_gather_at_each_end() -> None:
    assert lowered_ops(Residual(), torch.randn(1, 8, 5, 5))[0] == 2


class Barrier(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.one, self.norm, self.two, self.head = nn.Conv2d(3, 8, 1), het(8, 8), norm, het(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.norm(self.one(self.stem(x)))))


def test_group_norm_is_a_barrier_and_layer_norm_is_not() -> None:
    x = torch.randn(1, 3, 5, 5)
    assert lowered_ops(Barrier(nn.GroupNorm(2, 8)), x)[0] == 2
    assert lowered_ops(Barrier(nn.GroupNorm(1, 8)), x)[0] == 0
    assert lowered_ops(Barrier(nn.Softmax(1)), x)[0] == 0


class Grouped(nn.Module):
    """A HetConv in front of a group convolution of the network's own."""

    def __init__(self, p: int, groups: int) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), het(16, 16, p), nn.Conv2d(16, 16, 3, groups=groups)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(self.stem(x))))))


def test_a_group_consumer_absorbs_whole_groups_only() -> None:
    x = torch.randn(1, 3, 5, 5)
    # Residues modulo 4 lie across the groups of two neighbours: one gather between the two convolutions.
    assert lowered_ops(Grouped(4, 2), x)[0] == 1
    assert lowered_ops(Grouped(1, 2), x)[0] == 0


def test_auto_leaves_a_layer_dense_whose_gathers_cost_more_than_it_saves() -> None:
    net = randomize(Grouped(4, 2))
    program = capture(net, torch.randn(1, 3, 5, 5).double())
    lowered = lower(program, format=Format.ONNX, precision=Precision.INT8)
    assert lowered.plan.gathers == 0


def shuffle_units() -> nn.Module:
    """Group convolutions on both sides of a shuffle, as in ShuffleNet."""
    stem = nn.Conv2d(3, 8, 1)
    return nn.Sequential(stem, ShuffleUnit(8, 8, groups=2), ShuffleUnit(8, 24, stride=2, groups=2), ShuffleUnit(24, 24, groups=2))


@pytest.mark.parametrize("lowering", ["auto", Lowering.DENSE])
def test_shuffles_between_groups_are_absorbed_where_these_may_be_dense(lowering: Lowering | Literal["auto"]) -> None:
    gathers, ops = lowered_ops(shuffle_units(), torch.randn(1, 3, 8, 8), lowering)
    assert gathers == 0
    assert not [op for op in ops if op in MOVES]


@dataclass(frozen=True)
class DenseIsSlow:
    """Costs of a device on which no group convolution may be dense."""

    source: str = "measured on fake"

    def cost_ns(self, geometry: LayerGeometry, lowering: Lowering, format: Format, precision: Precision) -> float | None:
        return 1e9 if lowering is Lowering.DENSE and geometry.groups else 1e3


def test_groups_that_are_worth_a_gather_stay() -> None:
    gathers, _ = lowered_ops(shuffle_units(), torch.randn(1, 3, 8, 8), "auto", DenseIsSlow())
    kept, _ = lowered_ops(shuffle_units(), torch.randn(1, 3, 8, 8), Lowering.KEEP)
    assert gathers == kept > 0


class Halves(nn.Module):
    """A channel split after a shuffle, as in ShuffleNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.channel_shuffle(self.stem(x), 2).chunk(2, 1)
        y = F.channel_shuffle(torch.cat([a, F.relu(self.branch(b))], 1), 2)
        c, d = y.chunk(2, 1)
        return self.head(torch.cat([c, F.relu(d)], 1))


def test_a_split_after_a_shuffle_of_a_concat_is_cut_from_its_parts() -> None:
    gathers, ops = lowered_ops(Halves(), torch.randn(1, 3, 5, 5), "auto")
    assert gathers == 0
    assert not {"transpose", "reshape", "view"} & set(ops)


def test_the_shuffles_of_shufflenet_are_absorbed() -> None:
    gathers, ops = lowered_ops(shufflenet_v2(), torch.randn(1, 1, 28, 28), "auto")
    assert gathers == 0
    assert not {"transpose", "permute", "index_select"} & set(ops)


class Unit(nn.Module):
    """A unit like ShuffleNetV2's, with one of several things in its branch."""

    def __init__(self, channels: int, groups: int, inner: str) -> None:
        super().__init__()
        half = channels // 2
        self.groups, self.inner = groups, inner
        self.first, self.last = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1)
        self.depthwise, self.act = nn.Conv2d(half, half, 3, padding=1, groups=half), nn.PReLU(half)
        self.grouped, self.gate = nn.Conv2d(half, half, 3, padding=1, groups=2), nn.Conv2d(half, half, 1)
        nn.init.uniform_(self.act.weight)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, 1)
        if self.inner != "bare":
            y = self.first(y)
        if self.inner == "depthwise":
            y = self.act(self.depthwise(y))
        elif self.inner == "grouped":
            y = self.grouped(F.relu(y))
        elif self.inner == "gated":
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        elif self.inner == "residual":
            y = y + F.relu(self.gate(y))
        elif self.inner == "concat":
            y = torch.cat([y[:, ::2], y[:, 1::2]], 1)
        y = torch.cat([kept, F.relu(self.last(y))], 1)
        return F.channel_shuffle(y, self.groups)


class Units(nn.Module):
    def __init__(self, channels: int, units: list[tuple[int, str]], *, flat: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.units = nn.Sequential(*(Unit(channels, groups, inner) for groups, inner in units))
        self.head: nn.Module = nn.Linear(channels * 16, 3) if flat else nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.units(self.stem(x))
        return self.head(y.flatten(1) if isinstance(self.head, nn.Linear) else y)


INNER = ("depthwise", "grouped", "gated", "residual", "concat", "bare")


@given(
    st.sampled_from([8, 12, 24]),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from(INNER)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 1 << 20),
)
@settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
def test_units_of_any_kind_need_no_gather(channels: int, units: list[tuple[int, str]], flat: bool, seed: int) -> None:
    torch.manual_seed(seed)
    gathers, ops = lowered_ops(Units(channels, units, flat=flat), torch.randn(1, 3, 4, 4), "auto")
    grouped = sum(inner == "grouped" for _, inner in units)
    assert gathers <= grouped  # channels of one group may come from several places; each such input is one gather
    assert "transpose" not in ops


class Picked(nn.Module):
    """Strided slices and indices of a convolution's channels."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.even, self.odd = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
        self.some, self.head = nn.Conv2d(5, 4, 3), nn.Conv2d(12, 2, 1)
        self.register_buffer("index", torch.tensor([7, 2, 11, 0, 5]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        parts = [self.even(y[:, ::2]), self.odd(y[:, 1::2]), self.some(y[:, self.index])]
        return self.head(torch.cat(parts, 1))


def test_strided_slices_and_indices_are_runs_of_a_convolution() -> None:
    gathers, ops = lowered_ops(Picked(), torch.randn(1, 3, 6, 6), "auto")
    assert gathers == 0
    assert "index" not in ops
    # The convolution writes the channels of each slice together; the index lies across both.
    assert ops.count("slice") <= 6


class Scattered(nn.Module):
    """Every second channel of the graph's input, whose order is fixed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x[:, ::2])


def test_a_graph_without_absorbing_layers_is_left_alone() -> None:
    gathers, ops = lowered_ops(Scattered(), torch.randn(1, 64, 3, 3), "auto")
    assert (gathers, ops) == (0, ["slice", "relu"])


class Twice(nn.Module):
    """One weight used at two places, in two orders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.one, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), het(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.shared(self.stem(x))
        return self.head(self.one(y)), self.shared(y)


def test_a_shared_weight_may_get_two_orders() -> None:
    lowered_ops(Twice(), torch.randn(1, 3, 5, 5))


def test_the_stored_program_is_not_changed() -> None:
    net = randomize(hetnet(width=8, p=2, blocks=(1, 1, 1)))
    x = torch.randn(1, 1, 8, 8).double()
    program = capture(net, x)
    before = str(program.graph.graph), [tensor.clone() for tensor in program.graph.state_dict().values()]
    lower(program, format=Format.TFLITE, precision=Precision.FP32, lowering=Lowering.GROUPED)
    assert str(program.graph.graph) == before[0]
    for one, two in zip(before[1], program.graph.state_dict().values(), strict=True):
        assert torch.equal(one, two)
