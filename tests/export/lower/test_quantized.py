"""Quantization parameters travel with the layers: nothing is calibrated again, integers stay what they were.

All scales here are powers of two, so float32 holds every sum exactly and the simulated integers can be compared bit for bit.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.lower.branches import group_branch
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering, NumericClass
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.graph import constant_of
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE, Q, QParams

aten = torch.ops.aten
STEP = 2.0**-4
CHANNELS = 16
OWNER = torch.arange(CHANNELS) % 4


def network(*, point: bool, relu: bool) -> nn.Sequential:
    torch.manual_seed(1)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    mask = (OWNER[:, None] == OWNER[None])[:, :, None, None].expand_as(conv.weight).float().clone()
    if point:
        mask[:, :, 1, 1] = 1
    with torch.no_grad():
        conv.weight.mul_(mask)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), conv, nn.ReLU() if relu else nn.Identity(), nn.Conv2d(CHANNELS, 4, 1)).eval()


def quantized(net: nn.Sequential, *, branches: bool = True) -> Program:
    """The program with parameters by hand, as calibration would set them."""
    program = capture(net, torch.randn(1, 3, 8, 8))
    for node in program.graph.graph.nodes:
        if node.target is aten.conv2d.default:
            weight = constant_of(program.graph, node.args[1])
            exponents = torch.arange(weight.shape[0]) % 3 + 7.0  # rows with scales of their own
            node.meta[WEIGHT_SCALE] = 2.0**-exponents
            if weight.shape[2] == 3 and branches:
                node.meta[BRANCH_Q] = {"group": QParams(STEP, 3), "point": QParams(STEP / 2, -5)}
        if node.op == "placeholder" or (node.target is aten.conv2d.default and not _fused(node)):
            node.meta[Q] = QParams(STEP, 7)
        if node.target is aten.relu.default:
            node.meta[Q] = QParams(STEP, -128)
    return program


def _fused(node: Node) -> bool:
    return any(user.target is aten.relu.default for user in node.users)


def run(program: Program, lowering: Lowering) -> tuple[Tensor, LoweredProgram]:
    lowered = lower(program, format=Format.ONNX, precision=Precision.INT8, lowering=lowering)
    outputs = insert_qdq(lowered.program.graph, fold_weights=True)(*program.example_inputs)
    return outputs[0], lowered


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("lowering", [Lowering.GROUPED, Lowering.SPLIT])
def test_the_forms_of_a_pure_group_layer_are_bit_equal(lowering: Lowering, relu: bool) -> None:
    program = quantized(network(point=False, relu=relu))
    dense, _ = run(program, Lowering.DENSE)
    other, lowered = run(program, lowering)
    assert torch.equal(dense, other)
    assert lowered.plan.layers[1].choice is lowering
    assert lowered.plan.layers[1].chosen.numeric_class is NumericClass.FUSED


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("lowering", [Lowering.GROUPED, Lowering.SPLIT])
def test_two_branches_differ_by_their_own_rounding_only(lowering: Lowering, relu: bool) -> None:
    net = network(point=True, relu=relu)
    net = nn.Sequential(*net[:3]).eval()  # the layer's own output
    program = quantized(net)
    dense, _ = run(program, Lowering.DENSE)
    other, lowered = run(program, lowering)
    steps = (dense - other) / STEP
    # Half a step of the group branch, a quarter for the finer point branch, and the rounding of both results.
    assert 0 < steps.abs().max() <= 2
    assert lowered.plan.layers[1].chosen.numeric_class is NumericClass.BRANCHED


class Shuffled(nn.Module):
    """Two units with a concat, a shuffle and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, 4, 1)
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        for conv in self.convs:
            kept, moved = y.chunk(2, 1)
            y = torch.channel_shuffle(torch.cat([kept, torch.relu(conv(moved))], 1), 2)
        return self.head(y)


def test_runs_of_a_shuffled_split_are_bit_equal_and_keep_their_parameters() -> None:
    torch.manual_seed(2)
    program = capture(Shuffled().eval(), torch.randn(2, 3, 6, 6))
    for node in program.graph.graph.nodes:
        if node.target is aten.conv2d.default:
            rows = node.meta["val"].shape[1]
            node.meta[WEIGHT_SCALE] = 2.0 ** -(torch.arange(rows) % 3 + 7.0)
        if node.op in ("placeholder", "call_function") and isinstance(node.meta.get("val"), Tensor) and not _fused(node):
            node.meta[Q] = QParams(STEP, -128) if node.op == "call_function" else QParams(STEP, 7)
    before = insert_qdq(program.graph, fold_weights=True)(*program.example_inputs)[0]
    after, lowered = run(program, Lowering.DENSE)
    assert torch.equal(before, after)
    assert lowered.plan.gathers == 0
    pieces = [*nodes_of(lowered, aten.slice.Tensor), *nodes_of(lowered, aten.cat.default)]
    assert len(pieces) > 6
    assert all(node.meta[Q] == QParams(STEP, -128) for node in pieces)


def nodes_of(lowered: LoweredProgram, target: object) -> list[Node]:
    return [node for node in lowered.program.graph.graph.nodes if node.target is target]


def test_parameters_of_a_fused_layer_with_two_branches() -> None:
    _, lowered = run(quantized(network(point=True, relu=True)), Lowering.GROUPED)
    group, point = nodes_of(lowered, aten.conv2d.default)[1:3]
    (total,) = nodes_of(lowered, aten.add.Tensor)
    (relu,) = nodes_of(lowered, aten.relu.default)
    assert (group.meta[Q], point.meta[Q]) == (QParams(STEP, 3), QParams(STEP / 2, -5))
    assert Q not in total.meta  # the activation behind it has them
    assert relu.meta[Q] == QParams(STEP, -128)
    assert relu.args[0] is total


def test_parameters_of_a_layer_that_is_not_fused() -> None:
    _, lowered = run(quantized(network(point=True, relu=False)), Lowering.SPLIT)
    (total,) = nodes_of(lowered, aten.add.Tensor)
    (joined,) = nodes_of(lowered, aten.cat.default)
    assert total.meta[Q] == QParams(STEP, 7)
    assert joined.meta[Q] == QParams(STEP, 3)
    slices = nodes_of(lowered, aten.slice.Tensor)
    assert {piece.meta[Q] for piece in slices} == {QParams(STEP, 7)}  # those of the tensor that they are cut from


def test_the_activation_of_a_split_layer_moves_onto_each_piece() -> None:
    _, lowered = run(quantized(network(point=False, relu=True)), Lowering.SPLIT)
    relus = nodes_of(lowered, aten.relu.default)
    (joined,) = nodes_of(lowered, aten.cat.default)
    assert joined.args[0] == relus
    assert {node.meta[Q] for node in [*relus, joined]} == {QParams(STEP, -128)}
    assert all(Q not in conv.meta for conv in nodes_of(lowered, aten.conv2d.default)[1:5])


@pytest.mark.parametrize("lowering", [Lowering.GROUPED, Lowering.SPLIT])
def test_weight_scales_stay_with_their_output_channels(lowering: Lowering) -> None:
    """The bias of channel n says which channel it is, so scales can be followed through every permutation."""
    net = network(point=True, relu=True)
    program = quantized(net)
    for node in program.graph.graph.nodes:
        if WEIGHT_SCALE in node.meta:
            node.meta[WEIGHT_SCALE] = torch.arange(len(node.meta[WEIGHT_SCALE])) + 1.0
    with torch.no_grad():
        for conv in (net[0], net[1]):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            conv.bias.copy_(torch.arange(CHANNELS) + 1.0)
    lowered = lower(program, format=Format.ONNX, precision=Precision.INT8, lowering=lowering)
    *convs, _ = nodes_of(lowered, aten.conv2d.default)
    (point,) = [node for node in convs if node.args[2] is None]
    stored: list[float] = []
    for node in convs:
        if node is point:
            continue
        bias = constant_of(lowered.program.graph, node.args[2])  # type: ignore[arg-type]  # a node, as just selected
        assert torch.equal(bias, node.meta[WEIGHT_SCALE])
        stored += bias.tolist()
    assert sorted(stored[CHANNELS:]) == [*range(1, CHANNELS + 1)] != stored[CHANNELS:]
    assert point.meta[WEIGHT_SCALE].tolist() == stored[CHANNELS:]


def test_a_layer_without_calibrated_branches_stays_whole() -> None:
    _, lowered = run(quantized(network(point=True, relu=True), branches=False), Lowering.GROUPED)
    layer = lowered.plan.layers[1]
    assert layer.choice is Lowering.DENSE
    assert layer.reason == "asked for grouped, but its two branches have not been calibrated"


def test_a_float_layer_of_a_quantized_network_has_the_class_float() -> None:
    program = quantized(network(point=True, relu=False))
    for node in program.graph.graph.nodes:
        if BRANCH_Q in node.meta:
            del node.meta[BRANCH_Q], node.meta[WEIGHT_SCALE], node.meta[Q]
    plan = lower(program, format=Format.ONNX, precision=Precision.INT8, lowering=Lowering.GROUPED).plan
    assert [layer.chosen.numeric_class for layer in plan.layers] == [NumericClass.FUSED, NumericClass.FLOAT, NumericClass.FUSED]
    assert plan.layers[1].chosen.weight_bytes == 4 * plan.layers[1].chosen.macs // 64


def test_a_gather_keeps_the_parameters_of_its_tensor() -> None:
    net = nn.Sequential(network(point=False, relu=False)[1]).eval()
    program = capture(net, torch.randn(1, CHANNELS, 8, 8))
    for node in program.graph.graph.nodes:
        if node.op == "placeholder":
            node.meta[Q] = QParams(STEP, 7)
        if node.target is aten.conv2d.default:
            node.meta.update({Q: QParams(STEP, 5), WEIGHT_SCALE: torch.full((CHANNELS,), 2.0**-7)})
    _, lowered = run(program, Lowering.GROUPED)
    assert [node.meta[Q].zero_point for node in nodes_of(lowered, aten.index_select.default)] == [7, 5]


def test_the_group_branch_is_what_the_lowering_computes() -> None:
    weight = network(point=True, relu=False)[1].weight
    assert isinstance(weight, Tensor)
    mask = group_branch(weight, 1)
    assert mask is not None
    expected = (OWNER[:, None] == OWNER[None])[:, :, None, None].expand_as(weight)
    assert torch.equal(mask, expected)
    assert group_branch(weight * mask, 1) is None
    assert group_branch(torch.randn(4, 4, 3, 3), 1) is None


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("point", [True, False])
def test_padded_groups_carry_the_parameters(point: bool, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 7, 5 and 4 channels: bit-equal to dense without a second branch, within two roundings of it with one."""
    sizes = torch.tensor([0] * 7 + [1] * 5 + [2] * 4)
    monkeypatch.setitem(globals(), "OWNER", sizes[torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(3))])
    program = quantized(nn.Sequential(*network(point=point, relu=relu)[:3]).eval())  # the layer's own output
    dense, _ = run(program, Lowering.DENSE)
    padded, lowered = run(program, Lowering.GROUPED)
    assert lowered.plan.layers[1].choice is Lowering.GROUPED
    assert lowered.plan.gathers == 2
    if point:
        assert lowered.plan.layers[1].chosen.numeric_class is NumericClass.BRANCHED
        assert 0 < ((dense - padded) / STEP).abs().max() <= 2
    else:
        assert torch.equal(dense, padded)


class Tokens(nn.Module):
    """A linear layer on more tokens than it has outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.linear = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, 32, 4)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.linear(torch.cat([tokens, tokens], 1))


def test_the_scales_of_a_linear_layer_on_tokens_stay() -> None:
    program = capture(Tokens().eval(), torch.randn(1, 3, 8, 8))
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for node in program.graph.graph.nodes:
        if node.target is aten.linear.default:
            node.meta |= {WEIGHT_SCALE: scale, Q: QParams(STEP, 3)}
    lowered = lower(program, format=Format.ONNX, precision=Precision.INT8, lowering=Lowering.GROUPED)
    (found,) = (node.meta[WEIGHT_SCALE] for node in lowered.program.graph.graph.nodes if node.target is aten.linear.default)
    assert torch.equal(found, scale)
