"""Formulas of parameters and multiply-accumulates against what modules hold and do; and what no module can be is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from edgefold.errors import UsageError
from edgefold.models import blocks
from edgefold.models.blocks import (
    CBAM,
    AveragePool2d,
    ChannelAttention,
    ChannelLocalConv2d,
    EfficientChannelAttention,
    GlobalMaxPool2d,
    HetConv2d,
    InvertedResidual,
    LocallyConnected2d,
    MaxPool2d,
    NaiveHetConv2d,
    ShuffleUnit,
    ShuffleUnitV2,
    SpatialAttention,
    SqueezeExcite,
)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that elementwise products give: the multiplications of gates."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor):
            self.count += result.numel()
        return result


def done(module: nn.Module, x: Tensor) -> int:
    """Multiplications of one sample: torch's count of its convolutions and products, and the gates' elementwise ones."""
    with torch.no_grad(), Products() as products, FlopCounterMode(display=False) as flops:
        module.eval()(x)
    return flops.get_total_flops() // 2 + products.count


def weights(module: nn.Module) -> int:
    """The kernels' entries, without norms and biases."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


SIZE = (5, 6)


@pytest.mark.parametrize(
    ("module", "macs"),
    [
        (SqueezeExcite(8, 4), lambda: blocks.squeeze_excite_macs(8, 4, SIZE)),
        (SqueezeExcite(3, 16), lambda: blocks.squeeze_excite_macs(3, 16, SIZE)),
        (EfficientChannelAttention(64), lambda: blocks.eca_macs(64, SIZE)),
        (EfficientChannelAttention(64, 5), lambda: blocks.eca_macs(64, SIZE, 5)),
        (ChannelAttention(8, 2), lambda: blocks.channel_attention_macs(8, 2, SIZE)),
        (SpatialAttention(3), lambda: blocks.spatial_attention_macs(8, 3, SIZE)),
        (CBAM(8, 4, 5), lambda: blocks.cbam_macs(8, 4, 5, SIZE)),
    ],
    ids=["se", "se-narrow", "eca", "eca-5", "channel", "spatial", "cbam"],
)
def test_attention_multiplies_as_often_as_its_formula_says(module: nn.Module, macs: Callable[[], int]) -> None:
    channels = 64 if isinstance(module, EfficientChannelAttention) else 8
    if isinstance(module, SqueezeExcite):
        channels = module.expand.out_channels
    assert macs() == done(module, torch.randn(1, channels, *SIZE))


def test_channel_attention_has_the_parameters_of_its_formula() -> None:
    assert blocks.channel_attention_parameters(8, 2) == parameters(ChannelAttention(8, 2))
    assert blocks.channel_attention_parameters(4, 16) == parameters(ChannelAttention(4, 16))


@pytest.mark.parametrize("channels", [1, 2, 8, 16, 32, 64, 127, 128, 256, 512, 1024, 2048, 2**13])
def test_ecas_own_kernel_is_the_odd_number_nearest_to_the_papers(channels: int) -> None:
    exact = (math.log2(channels) + 1) / 2
    nearest = min(range(1, 21, 2), key=lambda odd: (abs(odd - exact), -odd))
    assert blocks.eca_kernel_size(channels) == nearest == blocks.eca_parameters(channels)
    for kernel in (None, 1, 5, 9):
        module = EfficientChannelAttention(channels, kernel)
        assert blocks.eca_parameters(channels, kernel) == parameters(module)


def test_a_shuffle_costs_nothing() -> None:
    shuffle = blocks.ChannelShuffle(3)
    assert blocks.channel_shuffle_parameters(12, 3) == parameters(shuffle) == 0
    assert blocks.channel_shuffle_macs(12, 3, SIZE) == done(shuffle, torch.randn(1, 12, *SIZE)) == 0


def unnormed(module: nn.Module) -> int:
    """All parameters but the norms'."""
    return sum(parameters(layer) for layer in module.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "stride"), [(12, 1), (36, 2)])
def test_units_count_their_biases_and_their_attention(out: int, stride: int, bias: bool) -> None:
    after = (8, 9) if stride == 1 else (4, 5)
    for expand, attention in ((1, True), (2.5, True), (2.5, False)):
        residual = InvertedResidual(12, out, 3, stride, bias=bias, expand=expand, attention=attention)
        assert blocks.inverted_residual_parameters(12, out, 3, expand, attention, bias) == unnormed(residual)
        macs = blocks.inverted_residual_macs(12, out, 3, expand, (8, 9), after, attention)
        assert macs == done(residual, torch.randn(1, 12, 8, 9))
    unit, v2 = ShuffleUnit(12, out, 3, stride, bias=bias, groups=2), ShuffleUnitV2(12, out, 3, stride, bias=bias)
    assert blocks.shuffle_unit_parameters(12, out, 3, stride, 2, bias) == unnormed(unit)
    assert blocks.shuffle_unit_v2_parameters(12, out, 3, stride, bias) == unnormed(v2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, (3, 1)])
def test_units_multiply_as_often_as_their_formulas_say(stride: int, kernel: int | tuple[int, int]) -> None:
    x = torch.randn(1, 12, 8, 9)
    out, after = (12, (8, 9)) if stride == 1 else (36, (4, 5))
    for expand in (1, 2.5):
        residual = InvertedResidual(12, out, kernel, stride, expand=expand)
        assert blocks.inverted_residual_parameters(12, out, kernel, expand) == weights(residual)
        assert blocks.inverted_residual_macs(12, out, kernel, expand, (8, 9), after) == done(residual, x)
    for groups in (2, 4, 6):
        unit = ShuffleUnit(12, out, kernel, stride, groups=groups)
        assert blocks.shuffle_unit_parameters(12, out, kernel, stride, groups) == weights(unit)
        assert blocks.shuffle_unit_macs(12, out, kernel, stride, groups, (8, 9), after) == done(unit, x)
    v2 = ShuffleUnitV2(12, out, kernel, stride)
    assert blocks.shuffle_unit_v2_parameters(12, out, kernel, stride) == weights(v2)
    assert blocks.shuffle_unit_v2_macs(12, out, kernel, stride, (8, 9), after) == done(v2, x)


def reads(layer: nn.Module, size: tuple[int, int, int]) -> int:
    """Pairs of an output and an input that it depends on; without padding, each is one multiplication."""
    x = torch.randn(1, *size, dtype=torch.float64)
    return int(torch.count_nonzero(jacobian(layer.double(), x)))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("window", ["strided", "sliding"])
@pytest.mark.parametrize(("stride", "after"), [(1, (3, 4)), (2, (2, 2))])
def test_channel_local_convolutions_read_what_their_formula_says(window: str, stride: int, after: tuple[int, int]) -> None:
    layer = ChannelLocalConv2d(6, 4, 3, stride, group_size=2, window=window)
    assert blocks.channel_local_macs(4, 3, 2, after) == reads(layer, (6, 5, 6))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
def test_hetconvs_read_and_multiply_what_their_formula_says(p: int) -> None:
    assert blocks.hetconv_macs(6, 4, 3, p, (3, 4)) == reads(HetConv2d(6, 4, 3, p=p), (6, 5, 6))
    loop = NaiveHetConv2d(6, 4, 3, 2, 1, bias=False, p=p)
    assert blocks.hetconv_macs(6, 4, 3, p, (3, 3)) == done(loop, torch.randn(1, 6, 5, 6))


def test_locally_connected_layers_read_what_their_formula_says() -> None:
    layer = LocallyConnected2d(2, 3, 3, 2, input_size=(5, 6))
    assert blocks.locally_connected_macs(2, 3, 3, (2, 2)) == reads(layer, (2, 5, 6))


def test_poolings_have_no_weights_and_read_their_windows() -> None:
    for pool in (MaxPool2d(4, 4, (3, 2)), AveragePool2d(4, 4, (3, 2))):
        assert blocks.pooling_parameters(4, 4, (3, 2)) == parameters(pool) == 0
        assert blocks.pooling_macs(4, 4, (3, 2), (3, 5)) == done(pool, torch.randn(1, 4, 5, 6)) == 0
    assert blocks.pooling_operations(4, 4, (3, 2), (3, 5)) == reads(AveragePool2d(4, 4, (3, 2)), (4, 5, 6))
    assert blocks.pooling_operations(4, 4, (5, 6), (1, 1)) == reads(blocks.GlobalAveragePool2d(), (4, 5, 6))
    assert parameters(GlobalMaxPool2d()) == 0


@pytest.mark.parametrize(
    ("formula", "arguments", "message"),
    [
        ("standard_parameters", (5, 0, 3), "StandardConv2d: out_channels is 0"),
        ("standard_macs", (5, 8, 3, (4, 0)), r"StandardConv2d: output_size is \(4, 0\)"),
        ("standard_macs", (5, 8, 3, (4, 4, 4)), "StandardConv2d: output_size is"),
        ("standard_parameters", (5, 8, 2.5), "StandardConv2d: kernel_size is 2.5"),
        ("group_parameters", (5, 10, 3, 2), "GroupConv2d: groups=2 does not divide in_channels=5"),
        ("group_parameters", (4, 10, 3, 0), "GroupConv2d: groups is 0"),
        ("group_macs", (4, 10, 3, 4, (2, 2)), "GroupConv2d: groups=4 does not divide out_channels=10"),
        ("separable_parameters", (-1, 10, 3), "DepthwiseSeparableConv2d: in_channels is -1"),
        ("separable_macs", (4, 10, 3, (0, 2)), "DepthwiseSeparableConv2d: output_size"),
        ("dual_parameters", (5, 10, 3, 2), "DualConv2d: groups=2 does not divide in_channels=5"),
        ("dual_parameters", (4, 4, 2, 2), "DualConv2d: kernel_size is .* odd sides"),
        ("dual_macs", (4, 4, 3, 0, (2, 2)), "DualConv2d: groups is 0"),
        ("channel_local_parameters", (4, 3, 0), "ChannelLocalConv2d: group_size is 0"),
        ("channel_local_macs", (4, 3, 2, (-2, 2)), "ChannelLocalConv2d: output_size"),
        ("locally_connected_parameters", (4, 4, 3, (0, 3)), "LocallyConnected2d: output_size"),
        ("hetconv_parameters", (4, 4, 3, 0), "HetConv2d: p is 0"),
        ("hetconv_parameters", (4, 4, 4, 2), "HetConv2d: kernel_size is .* odd sides"),
        ("hetconv_macs", (4, 4, 3, 2.0, (2, 2)), "HetConv2d: p is 2.0"),
        ("inverted_residual_parameters", (4, 4, 3, 0), "InvertedResidual: expand is 0"),
        ("inverted_residual_macs", (4, 4, 3, math.nan, (2, 2), (2, 2)), "InvertedResidual: expand is nan"),
        ("inverted_residual_macs", (4, 4, 3, 2, (2, 0), (2, 2)), "InvertedResidual: input_size"),
        ("shuffle_unit_parameters", (4, 8, 3, 1, 2), "ShuffleUnit: out_channels is 8 at stride 1"),
        ("shuffle_unit_parameters", (4, 8, 3, 2, 0), "ShuffleUnit: groups is 0"),
        ("shuffle_unit_macs", (4, 4, 4, 1, 2, (2, 2), (2, 2)), "ShuffleUnit: kernel_size"),
        (
            "shuffle_unit_v2_parameters",
            (4, 7, 3, 2),
            "ShuffleUnitV2: out_channels is 7, expected an even number, half for each branch",
        ),
        ("shuffle_unit_v2_macs", (4, 8, 3, 2, (4, 4), (2, 0)), "ShuffleUnitV2: output_size"),
        ("pooling_parameters", (4, 8, 3), "pooling: out_channels is 8, expected in_channels=4"),
        ("pooling_operations", (4, 4, 0, (2, 2)), "pooling: kernel_size is 0"),
        ("squeeze_excite_parameters", (4, 0), "SqueezeExcite: reduction is 0"),
        ("squeeze_excite_macs", (0, 4, (2, 2)), "SqueezeExcite: channels is 0"),
        ("eca_parameters", (0,), "EfficientChannelAttention: channels is 0"),
        ("eca_parameters", (64, 4), "EfficientChannelAttention: kernel_size is 4, expected an odd"),
        ("channel_shuffle_parameters", (8, 3), "ChannelShuffle: groups=3 does not divide channels=8"),
        ("channel_shuffle_macs", (8, 2, (0, 1)), "ChannelShuffle: size"),
        ("inverted_residual_parameters", (4, 4, 3, 2, 1), "InvertedResidual: attention is 1"),
        ("eca_macs", (4, (0, 2)), "EfficientChannelAttention: size"),
        ("spatial_attention_parameters", (-1,), "SpatialAttention: kernel_size is -1"),
        ("spatial_attention_macs", (4, 2, (2, 2)), "SpatialAttention: kernel_size is 2"),
        ("channel_attention_parameters", (4, 0), "ChannelAttention: reduction is 0"),
        ("cbam_parameters", (4, 0), "ChannelAttention: reduction is 0"),
        ("cbam_macs", (4, 2, 4, (2, 2)), "SpatialAttention: kernel_size is 4"),
    ],
)
def test_formulas_refuse_what_constructors_refuse(formula: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        getattr(blocks, formula)(*arguments)
