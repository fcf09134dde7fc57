"""The convolutional blocks against independent float64 references, and their formulas against counted values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks import (
    AveragePool2d,
    ChannelAttention,
    ChannelLocalConv2d,
    ConvFactory,
    DepthwiseSeparableConv2d,
    DualConv2d,
    GlobalMaxPool2d,
    GroupConv2d,
    HetConv2d,
    InvertedResidual,
    LocallyConnected2d,
    MaskedConv2d,
    MaxPool2d,
    NaiveHetConv2d,
    ShuffleUnit,
    ShuffleUnitV2,
    SpatialAttention,
    SqueezeExcite,
    StandardConv2d,
    channel_local_inputs,
    channel_local_parameters,
    conv_factory,
    dual_macs,
    dual_parameters,
    group_macs,
    group_parameters,
    hetconv_parameters,
    locally_connected_macs,
    locally_connected_parameters,
    separable_macs,
    separable_parameters,
    standard_macs,
    standard_parameters,
)

GEOMETRIES = [(3, 1, 1, 1), (3, 2, 1, 1), ((3, 5), (1, 2), (1, 2), 1), (3, 1, 0, 2), (5, 2, 3, 1), (1, 1, 0, 1)]


def filled(block: nn.Module) -> nn.Module:
    """The block in float64 with every parameter random, so that no wrong zero is hidden."""
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block.double()


def slow_convolution(x: Tensor, weight: Tensor, block: GeometryLike) -> Tensor:
    """Convolution by windows and a product: no call of a convolution."""
    windows = F.unfold(x, weight.shape[2:], block.dilation, block.padding, block.stride)  # (B, M·K², L)
    y = weight.flatten(1) @ windows
    size = [
        (x.shape[2 + axis] + 2 * block.padding[axis] - block.dilation[axis] * (weight.shape[2 + axis] - 1) - 1)
        // block.stride[axis]
        + 1
        for axis in (0, 1)
    ]
    return y.view(*y.shape[:2], *size)


class GeometryLike:
    """The attributes that `slow_convolution` reads."""

    def __init__(self, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> None:
        self.stride, self.padding, self.dilation = stride, padding, dilation


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_blocks_equal_their_dense_kernels(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int], dilation: int
) -> None:
    x = torch.randn(2, 6, 11, 12, dtype=torch.float64)
    geometry = GeometryLike(pair(stride), pair(padding), pair(dilation))
    centre = [k // 2 for k in pair(kernel)]
    arguments = (6, 8, kernel, stride, padding, dilation, True)

    standard = filled(StandardConv2d(*arguments))
    grouped = filled(GroupConv2d(*arguments, groups=2))
    separable = filled(DepthwiseSeparableConv2d(*arguments))
    dual = filled(DualConv2d(*arguments, groups=2))
    local = filled(ChannelLocalConv2d(*arguments, group_size=2, window="sliding"))

    def blocks_of(weight: Tensor, groups: int) -> Tensor:
        """A group weight (N, M/G, …) as a dense one."""
        dense = torch.zeros(8, 6, *weight.shape[2:], dtype=weight.dtype)
        for n in range(8):
            start = n // (8 // groups) * (6 // groups)
            dense[n, start : start + 6 // groups] = weight[n]
        return dense

    dual_weight = blocks_of(dual.get_parameter("group.weight").detach(), 2)
    dual_weight[:, :, centre[0], centre[1]] += dual.get_parameter("point.weight").detach()[:, :, 0, 0]
    depthwise = separable.get_parameter("depthwise.weight").detach()
    local_weight = torch.zeros(8, 6, *pair(kernel), dtype=torch.float64)
    for n in range(8):
        for g in range(2):
            m = (n * 6 // 8 + g - 1) % 6
            local_weight[n, m] = local.get_parameter("weight").detach()[n, m]
    dense = [
        (standard, standard.get_parameter("weight").detach(), "bias"),
        (grouped, blocks_of(grouped.get_parameter("weight").detach(), 2), "bias"),
        (separable, separable.get_parameter("pointwise.weight").detach() * depthwise[None, :, 0], "pointwise.bias"),
        (dual, dual_weight, "group.bias"),
        (local, local_weight, "bias"),
    ]
    for block, weight, bias in dense:
        expected = slow_convolution(x, weight, geometry) + block.get_parameter(bias).view(1, -1, 1, 1)
        error = (block(x) - expected).abs().max().item()
        assert error < 1e-12, type(block).__name__


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_locally_connected_has_a_kernel_a_place(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int], dilation: int
) -> None:
    layer = LocallyConnected2d(3, 4, kernel, stride, padding, dilation, True, input_size=(9, 8))
    filled(layer)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    windows = F.unfold(x, pair(kernel), dilation, padding, stride)  # (B, M·K², L)
    expected = torch.einsum("bkl,lnk->bnl", windows, layer.weight).view(2, 4, *layer.output_size)
    expected = expected + layer.get_parameter("bias")
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_locally_connected_is_a_convolution_when_its_kernels_agree() -> None:
    layer = LocallyConnected2d(2, 3, 3, 1, 1, bias=False, input_size=6).double()
    kernel = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    layer.weight.data = kernel.flatten(1).expand(36, -1, -1).clone()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, padding=1), rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match=r"made for images of \(6, 6\), but got \(7, 6\)"):
        layer(torch.randn(1, 2, 7, 6, dtype=torch.float64))


def test_channel_windows() -> None:
    assert channel_local_inputs(4, 4, 2).tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]  # wraps
    assert channel_local_inputs(5, 4, 2).tolist() == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert channel_local_inputs(4, 4, 3, "sliding").tolist() == [[3, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 0]]
    assert channel_local_inputs(2, 4, 1, "sliding").tolist() == [[0], [0], [1], [1]]


def counted(block: nn.Module) -> int:
    if isinstance(block, ChannelLocalConv2d):
        return block.effective_parameters
    return sum(parameter.numel() for parameter in block.parameters())


M, N, K, SIZE = 8, 12, 3, (5, 7)


@pytest.mark.parametrize("bias", [False, True])
def test_parameter_formulas_count_what_is_there(bias: bool) -> None:
    assert standard_parameters(M, N, K, bias) == counted(StandardConv2d(M, N, K, bias=bias))
    assert group_parameters(M, N, K, 4, bias) == counted(GroupConv2d(M, N, K, bias=bias, groups=4))
    assert separable_parameters(M, N, K, bias) == counted(DepthwiseSeparableConv2d(M, N, K, bias=bias))
    assert dual_parameters(M, N, K, 4, bias) == counted(DualConv2d(M, N, K, bias=bias, groups=4))
    assert channel_local_parameters(N, K, 3, bias) == counted(ChannelLocalConv2d(M, N, K, bias=bias, group_size=3))
    local = LocallyConnected2d(M, N, K, padding=1, bias=bias, input_size=SIZE)
    assert locally_connected_parameters(M, N, K, SIZE, bias) == counted(local)


def test_worked_examples() -> None:
    assert standard_parameters(5, 10, 3) == 450
    assert group_parameters(6, 8, 3, 2) == 216
    assert separable_parameters(5, 10, 3) == 95
    assert dual_parameters(8, 8, 3, 4) / standard_parameters(8, 8, 3) == pytest.approx(1 / 4 + 1 / 9)
    assert group_parameters(8, 8, 3, 4) * 4 == standard_parameters(8, 8, 3)  # the saving is G times, not G²
    assert separable_parameters(8, 16, 3) / standard_parameters(8, 16, 3) == pytest.approx(1 / 16 + 1 / 9)
    assert hetconv_parameters(8, 8, 3, 4) / standard_parameters(8, 8, 3) == pytest.approx(1 / 4 + (1 - 1 / 4) / 9)


def counted_macs(block: nn.Module, x: Tensor) -> int:
    """Multiplications that torch's own counter sees, in a dense computation of plain convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        block(x)
    return counter.get_total_flops() // 2


def test_mac_formulas_count_what_is_done() -> None:
    x = torch.randn(1, M, *SIZE)
    assert standard_macs(M, N, K, SIZE) == counted_macs(StandardConv2d(M, N, K, padding=1), x)
    assert group_macs(M, N, K, 4, SIZE) == counted_macs(GroupConv2d(M, N, K, padding=1, groups=4), x)
    assert separable_macs(M, N, K, SIZE) == counted_macs(DepthwiseSeparableConv2d(M, N, K, padding=1), x)
    assert dual_macs(M, N, K, 4, SIZE) == counted_macs(DualConv2d(M, N, K, padding=1, groups=4), x)
    local = LocallyConnected2d(M, N, K, padding=1, input_size=SIZE)
    assert locally_connected_macs(M, N, K, SIZE) == counted_macs(local, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StandardConv2d(64, 64, 3, padding=1, bias=False),
        lambda: GroupConv2d(64, 64, 3, padding=1, bias=False, groups=8),
        lambda: DepthwiseSeparableConv2d(64, 64, 3, padding=1, bias=False),
        lambda: DualConv2d(64, 64, 3, padding=1, bias=False, groups=4),
        lambda: ChannelLocalConv2d(64, 64, 3, padding=1, bias=False, group_size=8),
        lambda: HetConv2d(64, 64, 3, p=4, padding=1, bias=False),
    ],
)
def test_initial_variance_is_kept_through_a_relu(make: Callable[[], nn.Module]) -> None:
    """Input of unit second moment (as after a ReLU of variance 2) gives output of variance 2."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16, 16).relu() * 2**0.5
    inner = make()(x)[:, :, 2:-2, 2:-2]
    assert inner.var().item() == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupConv2d(6, 8, 3, groups=4), "groups=4 does not divide in_channels=6; choose a divisor of 6"),
        (lambda: GroupConv2d(6, 8, 3, groups=3), "groups=3 does not divide out_channels=8"),
        (lambda: GroupConv2d(6, 6, 3, groups=0), "groups is 0"),
        (lambda: DualConv2d(4, 4, 2), "odd sides"),
        (lambda: StandardConv2d(4, 0, 3), "out_channels is 0"),
        (lambda: DepthwiseSeparableConv2d(4, 4, 3, stride=0), "stride is"),
        (lambda: ChannelLocalConv2d(4, 4, 3, group_size=5), "group_size is 5, expected at most in_channels=4"),
        (lambda: ChannelLocalConv2d(4, 4, 3, window="slidng"), "did you mean 'sliding'"),
        (lambda: LocallyConnected2d(1, 1, 5, input_size=3), r"too small for kernel_size \(5, 5\)"),
        (lambda: conv_factory("hetcon:4"), "did you mean 'hetconv'"),
        (lambda: conv_factory("hetconv"), "needs a positive integer for p"),
        (lambda: conv_factory("locally-connected"), "images of one size.*expected one of: average-pool, channel-local"),
        (lambda: conv_factory("wavelet"), "expected one of: average-pool, channel-local.*standard"),
        (lambda: conv_factory("standard+sse"), "unknown attention 'sse'; did you mean 'se'"),
        (lambda: conv_factory("shuffle"), "needs a positive integer for groups"),
        (lambda: conv_factory("shuffle-v2:2"), "takes none"),
        (lambda: conv_factory("hetconv:0"), "needs a positive integer for p"),
        (lambda: conv_factory("separable:2"), "takes none"),
    ],
)
def test_impossible_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


CHOICES = [
    "standard",
    "group:2",
    "hetconv:2",
    "dual:2",
    "separable",
    "channel-local:3",
    "channel-local-sliding:3",
    "average-pool",
]
CHOICES += ["max-pool", "inverted-residual", "inverted-residual:2", "inverted-hardswish:2", "shuffle:2", "shuffle-v2"]
CHOICES += ["standard+se", "hetconv:2+eca", "standard+channel", "shuffle:2+spatial", "standard+cbam"]


@pytest.mark.parametrize("conv", CHOICES)
@pytest.mark.parametrize(("stride", "out"), [(1, 4), (1, 8), (2, 8)])
def test_convolutions_by_name(conv: str, stride: int, out: int) -> None:
    block = conv_factory(conv)(4, out, 3, stride=stride, padding=1, bias=False)
    assert block(torch.randn(2, 4, 8, 8)).shape == (2, out, 8 // stride, 8 // stride)


def test_names_stand_for_the_blocks_and_their_numbers() -> None:
    def parts(conv: str) -> dict[type, nn.Module]:
        return {type(module): module for module in conv_factory(conv)(8, 8, 3, stride=1, padding=1, bias=False).modules()}

    local = parts("channel-local-sliding:3")[ChannelLocalConv2d]
    assert isinstance(local, ChannelLocalConv2d)
    assert (local.window, local.group_size) == ("sliding", 3)
    inner = parts("inverted-residual:3+se")
    assert inner[InvertedResidual].get_submodule("layers.0").out_channels == 24
    assert isinstance(inner[SqueezeExcite].get_submodule("gate"), nn.Hardsigmoid)
    assert nn.ReLU6 in inner
    assert nn.Hardswish in parts("inverted-hardswish")
    assert parts("shuffle:4")[ShuffleUnit].get_submodule("expand").groups == 4
    assert ShuffleUnitV2 in parts("shuffle-v2")
    assert {AveragePool2d, StandardConv2d} <= parts("average-pool").keys()
    assert MaxPool2d in parts("max-pool")
    assert {SpatialAttention, ChannelAttention} <= parts("standard+cbam").keys()


CLASSES = [ShuffleUnit, partial(ShuffleUnit, groups=4), ShuffleUnitV2, AveragePool2d, MaxPool2d, InvertedResidual]
CLASSES += [partial(HetConv2d, p=2), partial(NaiveHetConv2d, p=2), ChannelLocalConv2d, DepthwiseSeparableConv2d]


@pytest.mark.parametrize("conv", CLASSES)
@pytest.mark.parametrize(("stride", "out"), [(1, 4), (1, 8), (2, 8)])
def test_classes_stand_for_what_their_names_do(conv: ConvFactory, stride: int, out: int) -> None:
    block = conv_factory(conv)(4, out, 3, stride=stride, padding=1, bias=False)
    assert block(torch.randn(2, 4, 8, 8)).shape == (2, out, 8 // stride, 8 // stride)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (HetConv2d, "HetConv2d, which needs p; write 'hetconv:4' or partial"),
        (NaiveHetConv2d, r"needs p; write partial\(NaiveHetConv2d, p=4\)"),
        (MaskedConv2d, "needs mask; write a function"),
        (partial(LocallyConnected2d, input_size=8), "images of one size.*write one of: average-pool"),
        (GlobalMaxPool2d, "whole image.*write 'max-pool'"),
        (
            SqueezeExcite,
            "SqueezeExcite, which cannot stand for a convolution: it keeps the channels and the size; write 'standard\\+se'",
        ),
    ],
)
def test_classes_that_cannot_stand_for_a_convolution(conv: ConvFactory, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conv_factory(conv)


def test_a_factory_stays_as_it_is() -> None:
    assert conv_factory(StandardConv2d) is StandardConv2d
    bound = partial(GroupConv2d, groups=2)
    assert conv_factory(bound) is bound
