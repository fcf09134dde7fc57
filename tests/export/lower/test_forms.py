"""Every lowering of one layer computes what the dense layer computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.fold.structure import centre_tap
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering, NumericClass
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.graph import constant_of

aten = torch.ops.aten


def sparse(conv: nn.Module, owners: tuple[list[int], list[int]], *, point: bool, first: bool = False) -> nn.Sequential:
    """The conv with full kernels where input and output have the same owner, between two plain convolutions.

    With ``point`` the other kernels have one tap: the centre, or the ``first``.
    """
    weight = conv.weight
    assert isinstance(weight, Tensor)
    outs, ins, *kernel = weight.shape
    full = torch.tensor(owners[1])[:, None] == torch.tensor(owners[0])[None]
    mask = full.double().reshape(outs, ins, *[1] * len(kernel)).expand_as(weight).clone()
    if point:
        mask.flatten(2)[:, :, 0 if first else np.ravel_multi_index(centre_tap(tuple(kernel)), kernel)] = 1
    with torch.no_grad():
        weight.mul_(mask)
    plain = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    return nn.Sequential(plain(3, ins, 1), conv, nn.ReLU6(), plain(outs, 2, 1)).double().eval()


def lowered(net: nn.Module, x: Tensor, lowering: Lowering) -> LoweredProgram:
    return lowered_from(capture(net, x), net(x), lowering)


def lowered_from(program: Program, expected: Tensor, lowering: Lowering) -> LoweredProgram:
    result = lower(program, format=Format.TFLITE, precision=Precision.FP32, lowering=lowering)
    torch.testing.assert_close(result.program.graph(*program.example_inputs)[0], expected, rtol=1e-10, atol=1e-10)
    return result


def convs(result: LoweredProgram) -> list[tuple[int, ...]]:
    """(outputs, inputs of a group, kernel...) of every convolution but the first and the last."""
    graph = result.program.graph
    nodes = [node for node in graph.graph.nodes if node.target in (aten.conv2d.default, aten.conv1d.default)]
    return [tuple(constant_of(graph, node.args[1]).shape) for node in nodes[1:-1]]


RESIDUES = [0, 1, 2, 3] * 2
GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 5, "padding": 1, "stride": 3},
    {"kernel_size": 3, "padding": 3, "stride": 2},
    {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": 4, "padding": 1, "stride": 2},
    {"kernel_size": 2, "padding": 0, "stride": 2},
    {"kernel_size": 2, "padding": 1},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.parametrize(
    ("geometry", "first"),
    [
        *(pytest.param(geometry, False, id=f"{geometry}-False") for geometry in GEOMETRIES),
        *(
            pytest.param(geometry, True, id=f"{geometry}-True", marks=() if place in (1, 3, 6, 8) else pytest.mark.slow)
            for place, geometry in enumerate(GEOMETRIES)
        ),
    ],
)
def test_the_single_taps_of_the_branches_are_aligned(geometry: dict[str, int], first: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, **geometry)  # type: ignore[arg-type]  # one size fits all
    net = sparse(conv, (RESIDUES, RESIDUES), point=True, first=first)
    x = torch.randn(2, 3, 11, 12, dtype=torch.float64)
    program, expected = capture(net, x), net(x)
    for lowering in (Lowering.GROUPED, Lowering.SPLIT):
        result = lowered_from(program, expected, lowering)
        assert result.plan.layers[1].choice is lowering
        assert result.plan.layers[1].structure == "4 groups of 2->2 + 1x1"
        assert result.plan.gathers == 0


@pytest.mark.parametrize(("padding", "placed"), [((1, 0), True), ((1, 1), False)])
def test_the_second_middle_tap_of_an_even_kernel_is_aligned_where_it_has_input(padding: tuple[int, int], placed: bool) -> None:
    torch.manual_seed(0)
    asymmetric = padding[0] != padding[1]
    conv = nn.Conv2d(8, 8, 2, padding=0 if asymmetric else 1)
    net = sparse(conv, (RESIDUES, RESIDUES), point=False)
    with torch.no_grad():
        conv.weight[..., 1, 1] = torch.randn(8, 8)
    if asymmetric:
        net.insert(1, nn.ZeroPad2d((*padding, *padding)).eval())
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    program, expected = capture(net, x), net(x)
    for lowering in (Lowering.GROUPED, Lowering.SPLIT):
        layer = lowered_from(program, expected, lowering).plan.layers[1]
        assert layer.structure == "4 groups of 2->2 + 1x1"
        assert (layer.choice is lowering) == placed


def test_one_dimension() -> None:
    net = sparse(nn.Conv1d(8, 12, 3, stride=2, padding=1), (RESIDUES, [0, 1, 2, 3] * 3), point=True)
    x = torch.randn(1, 3, 9, dtype=torch.float64)
    program, expected = capture(net, x), net(x)
    for lowering in Lowering:
        result = lowered_from(program, expected, lowering)
        assert result.plan.gathers == 0
    assert result.plan.layers[1].geometry == "8->12 k3 s2 p1 d1 @9 g4*2->3 +point"


@pytest.mark.parametrize(
    ("lowering", "expected"),
    [
        (Lowering.DENSE, [(8, 8, 3, 3)]),
        (Lowering.GROUPED, [(8, 2, 3, 3), (8, 8, 1, 1)]),
        (Lowering.SPLIT, [(2, 2, 3, 3)] * 4 + [(8, 8, 1, 1)]),
    ],
)
def test_the_ops_of_each_form(lowering: Lowering, expected: list[tuple[int, ...]]) -> None:
    net = sparse(nn.Conv2d(8, 8, 3, padding=1), (RESIDUES, RESIDUES), point=True)
    assert convs(lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), lowering)) == expected


@pytest.mark.parametrize("lowering", [Lowering.GROUPED, Lowering.SPLIT])
def test_without_centre_taps_there_is_no_second_branch(lowering: Lowering) -> None:
    net = sparse(nn.Conv2d(8, 8, 3, padding=1), (RESIDUES, RESIDUES), point=False)
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), lowering)
    assert (8, 8, 1, 1) not in convs(result)
    assert aten.add.Tensor not in {node.target for node in result.program.graph.graph.nodes}


def test_unequal_groups_are_split_as_they_are() -> None:
    owners = [0, 1, 2] * 5 + [0]  # P = 3 over 16 channels: groups of 6, 5 and 5
    net = sparse(nn.Conv2d(16, 16, 3, padding=1), (owners, owners), point=True)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    result = lowered(net, x, Lowering.SPLIT)
    assert convs(result) == [(6, 6, 3, 3), (5, 5, 3, 3), (5, 5, 3, 3), (16, 16, 1, 1)]
    assert result.plan.gathers == 0


def test_small_components_share_a_group() -> None:
    owners = [0, 0, 0, 0, 1, 1, 2, 2]  # groups of 4, 2 and 2
    net = sparse(nn.Conv2d(8, 8, 3, padding=1), (owners, owners), point=True)
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.GROUPED)
    assert convs(result) == [(8, 4, 3, 3), (8, 8, 1, 1)]


def test_channels_without_a_full_kernel_fill_the_groups_up() -> None:
    ins, outs = [0, 0, 1, 1, 9, 9, 9, 9], [0, 1, 0, 1, 8, 8, 8, 8]
    net = sparse(nn.Conv2d(8, 8, 3, padding=1), (ins, outs), point=True)
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.GROUPED)
    assert convs(result) == [(8, 4, 3, 3), (8, 8, 1, 1)]


def test_separate_taps_one_group_a_channel() -> None:
    owners = list(range(8))  # P = M: a depthwise convolution and a 1x1
    net = sparse(nn.Conv2d(8, 8, 3, padding=1), (owners, owners), point=True)
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.GROUPED)
    assert convs(result) == [(8, 1, 3, 3), (8, 8, 1, 1)]


def test_many_groups_are_not_split() -> None:
    owners = list(range(32))
    net = sparse(nn.Conv2d(32, 32, 3, padding=1), (owners, owners), point=True)
    layer = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.SPLIT).plan.layers[1]
    assert layer.choice is Lowering.GROUPED
    assert layer.reason == "asked for split, but 32 groups are more than 16"


def test_a_block_diagonal_1x1_is_a_group_convolution() -> None:
    net = sparse(nn.Conv2d(8, 8, 1), (RESIDUES, RESIDUES), point=False)
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.GROUPED)
    assert convs(result) == [(8, 2, 1, 1)]


@pytest.mark.parametrize("lowering", list(Lowering))
def test_a_group_convolution_can_be_dense_or_split(lowering: Lowering) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)).double().eval()
    expected = {Lowering.DENSE: [(16, 8, 3, 3)], Lowering.SPLIT: [(4, 2, 3, 3)] * 4}.get(lowering, [(16, 2, 3, 3)])
    assert convs(lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), lowering)) == expected


@pytest.mark.parametrize("lowering", list(Lowering))
def test_depthwise_separable_stays_separable(lowering: Lowering) -> None:
    net = (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1)).double().eval()
    )
    result = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), lowering)
    assert convs(result) == [(8, 1, 3, 3), (16, 8, 1, 1)]
    assert {layer.choice for layer in result.plan.layers} == {Lowering.KEEP}


def test_the_plan_of_a_layer() -> None:
    net = sparse(nn.Conv2d(8, 8, 3, padding=1, bias=False), (RESIDUES, RESIDUES), point=True)
    plan = lowered(net, torch.randn(1, 3, 6, 6, dtype=torch.float64), Lowering.GROUPED).plan
    stem, layer, head = plan.layers
    assert [one.name for one in plan.layers] == ["0", "1", "3"]
    assert {candidate.lowering: candidate.macs // 36 for candidate in layer.candidates} == {
        Lowering.DENSE: 576,
        Lowering.GROUPED: 16 * 9 + 64,
        Lowering.SPLIT: 16 * 9 + 64,
    }
    assert {candidate.numeric_class for candidate in layer.candidates} == {NumericClass.FLOAT}
    assert layer.chosen.weight_bytes == 4 * (16 * 9 + 64)
    assert layer.kernel_map is not None
    assert layer.kernel_map.full == 16
    assert stem.candidates[0].macs == 24 * 36
    assert head.reason == "asked for grouped, but the weight has no separate channel groups"


UNEQUAL = [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("point", [True, False])
@pytest.mark.parametrize(
    "owners", [(UNEQUAL, UNEQUAL), ([0, 1, 2, 0, 1, 2, 0], [2, 1, 0, 1, 0, 0, 1]), (UNEQUAL, [0, 1, 2, 2, 2])]
)
def test_unequal_groups_are_padded_into_one_group_conv(owners: tuple[list[int], list[int]], point: bool) -> None:
    torch.manual_seed(0)
    net = sparse(nn.Conv2d(len(owners[0]), len(owners[1]), 3, padding=1, stride=2), owners, point=point)
    result = lowered(net, torch.randn(2, 3, 7, 7, dtype=torch.float64), Lowering.GROUPED)
    layer = result.plan.layers[1]
    assert layer.choice is Lowering.GROUPED
    widest = max(owners[1].count(owner) for owner in range(3))
    assert convs(result)[0] == (3 * widest, 3, 3, 3)
    assert len(convs(result)) == 1 + point
    assert result.plan.gathers == 2
    assert layer.chosen.macs == (27 * 3 * widest + (len(owners[0]) * len(owners[1]) if point else 0)) * 16
    assert lowered(net, torch.randn(2, 3, 7, 7, dtype=torch.float64), Lowering.SPLIT).plan.layers[1].choice is Lowering.SPLIT


def test_unequal_groups_that_padding_makes_dearer_than_dense_have_no_group_conv() -> None:
    owners = [0, 0, 0, 0, 0, 1, 2]  # three groups of 5 -> 5 are 75 pairs, dense has 49
    net = sparse(nn.Conv2d(7, 7, 3, padding=1), (owners, owners), point=False)
    layer = lowered(net, torch.randn(1, 3, 5, 5, dtype=torch.float64), Lowering.GROUPED).plan.layers[1]
    assert layer.choice is Lowering.SPLIT
    assert layer.reason.startswith(
        "asked for grouped, but its channel groups are of unequal sizes, and padded ones are more work"
    )
