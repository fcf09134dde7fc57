"""Attention and pooling against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgefold.errors import UsageError
from edgefold.models.blocks import (
    CBAM,
    AveragePool2d,
    ChannelAttention,
    EfficientChannelAttention,
    GlobalAveragePool2d,
    GlobalMaxPool2d,
    MaxPool2d,
    SpatialAttention,
    SqueezeExcite,
    cbam_parameters,
    eca_kernel_size,
    eca_parameters,
    spatial_attention_parameters,
    squeeze_excite_parameters,
)

X = torch.randn(3, 8, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def filled(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block.double()


def parameters(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters())


@pytest.mark.parametrize(("name", "gate"), [("sigmoid", torch.sigmoid), ("hardsigmoid", F.hardsigmoid)])
def test_squeeze_excite(name: str, gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    block = filled(SqueezeExcite(8, 4, name))
    w1, b1, w2, b2 = (p.detach() for p in block.parameters())
    z = X.mean((2, 3))
    s = gate((z @ w1[:, :, 0, 0].T + b1).clamp(min=0) @ w2[:, :, 0, 0].T + b2)
    torch.testing.assert_close(block(X), X * s[:, :, None, None], rtol=0, atol=1e-12)
    sums = s.sum(1)
    assert not torch.allclose(sums, torch.ones_like(sums))  # gates, not a distribution


def test_eca() -> None:
    block = filled(EfficientChannelAttention(8, 3))
    kernel = block.get_parameter("conv.weight").detach().flatten()
    z = F.pad(X.mean((2, 3)), (1, 1))
    s = torch.sigmoid(kernel[0] * z[:, :8] + kernel[1] * z[:, 1:9] + kernel[2] * z[:, 2:])
    torch.testing.assert_close(block(X), X * s[:, :, None, None], rtol=0, atol=1e-12)


def test_spatial_attention() -> None:
    block = filled(SpatialAttention(3))
    weight, bias = block.get_parameter("conv.weight").detach(), block.get_parameter("conv.bias").detach()
    maps = torch.stack([X.sum(1) / 8, X.max(1).values], 1)
    s = torch.sigmoid((weight.flatten(1) @ F.unfold(maps, 3, padding=1)).view(3, 1, 5, 6) + bias)
    torch.testing.assert_close(block(X), X * s, rtol=0, atol=1e-12)


def test_cbam_is_channel_then_spatial() -> None:
    block = filled(CBAM(8, 2, 3))
    channel = block.get_submodule("channel")
    assert isinstance(channel, ChannelAttention)
    w1, b1, w2, b2 = (p.detach() for p in channel.parameters())

    def answer(z: torch.Tensor) -> torch.Tensor:
        return (z @ w1[:, :, 0, 0].T + b1).relu() @ w2[:, :, 0, 0].T + b2

    s = torch.sigmoid(answer(X.mean((2, 3))) + answer(X.flatten(2).max(2).values))
    torch.testing.assert_close(channel(X), X * s[:, :, None, None], rtol=0, atol=1e-12)
    expected = block.get_submodule("spatial")(X * s[:, :, None, None])
    torch.testing.assert_close(block(X), expected, rtol=0, atol=1e-12)


def test_formulas_count_what_is_there() -> None:
    assert squeeze_excite_parameters(8, 4) == parameters(SqueezeExcite(8, 4)) == 2 * 8 * 2 + 2 + 8
    assert squeeze_excite_parameters(3, 16) == parameters(SqueezeExcite(3, 16))
    assert eca_parameters(64) == parameters(EfficientChannelAttention(64)) == 3
    assert spatial_attention_parameters(7) == parameters(SpatialAttention(7)) == 99
    assert cbam_parameters(32, 16, 7) == parameters(CBAM(32, 16, 7))


@pytest.mark.parametrize(("channels", "size"), [(8, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_eca_kernel_sizes(channels: int, size: int) -> None:
    assert eca_kernel_size(channels) == size  # int(|(log2 C + 1) / 2|), made odd


def test_pooling() -> None:
    windows = F.unfold(X, 3, padding=1, stride=2).view(3, 8, 9, 3, 3)
    inside = F.unfold(torch.ones_like(X), 3, padding=1, stride=2).view(3, 8, 9, 3, 3)
    torch.testing.assert_close(AveragePool2d(8, 8, 3, 2, 1)(X), windows.sum(2) / inside.sum(2), rtol=0, atol=1e-12)
    largest = windows.masked_fill(inside == 0, float("-inf")).max(2).values
    assert torch.equal(MaxPool2d(8, 8, 3, 2, 1)(X), largest)
    torch.testing.assert_close(GlobalAveragePool2d()(X).flatten(1), X.flatten(2).sum(2) / 30, rtol=0, atol=1e-12)
    assert torch.equal(GlobalMaxPool2d()(X).flatten(1), X.flatten(2).max(2).values)
    assert parameters(MaxPool2d(8, 8, 2)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SqueezeExcite(0), "channels is 0"),
        (lambda: SqueezeExcite(4, 0), "reduction is 0"),
        (lambda: SqueezeExcite(4, 2, "sigmod"), "did you mean 'sigmoid'"),
        (lambda: EfficientChannelAttention(4, 2), "kernel_size is 2, expected an odd number"),
        (lambda: SpatialAttention(4), "kernel_size is 4, expected an odd number"),
        (lambda: MaxPool2d(4, 8, 2), "out_channels is 8, expected in_channels=4"),
        (lambda: MaxPool2d(4, 4, 2, padding=2), "at most half of kernel_size"),
        (lambda: AveragePool2d(4, 4, 2, dilation=2), "dilation is"),
    ],
)
def test_impossible_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
