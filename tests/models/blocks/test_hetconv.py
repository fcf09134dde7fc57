"""HetConv against its definition, written as plain loops in float64, and its formulas against counted values."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.hetconv import (
    HetConv2d,
    NaiveHetConv2d,
    hetconv_macs,
    hetconv_mask,
    hetconv_parameters,
)
from edgefold.models.blocks.pooling import pooling_operations
from edgefold.models.count import count_cost
from edgefold.models.networks import build_network

GEOMETRIES = [
    # (in, out, kernel, stride, padding, dilation, bias), p
    ((6, 4, 3, 1, 1, 1, True), 3),
    ((5, 7, 3, 2, 1, 1, True), 2),  # P does not divide M
    ((4, 4, (3, 5), (1, 2), (1, 2), 1, False), 4),
    ((3, 5, 3, 1, 0, 2, True), 2),  # no padding: the 1×1 kernels read a cropped image
    ((6, 3, 5, 1, 3, 1, True), 16),  # P above M, more padding than the kernel needs
    ((4, 6, 1, 1, 0, 1, True), 2),
]


def by_definition(layer: HetConv2d, x: Tensor) -> Tensor:
    """y[n] as the sum over m of a K×K or a 1×1 convolution, chosen by (m − n) mod P."""
    weight = layer.weight.detach()
    height, width = layer.kernel_size
    maps = []
    for n in range(layer.out_channels):
        total = torch.zeros((), dtype=x.dtype)
        for m in range(layer.in_channels):
            kernel = weight[n, m].clone()
            if (m - n) % layer.p:
                centre = kernel[height // 2, width // 2].clone()
                kernel.zero_()
                kernel[height // 2, width // 2] = centre
            total = total + F.conv2d(x[:, m : m + 1], kernel[None, None], None, layer.stride, layer.padding, layer.dilation)
        maps.append(total if layer.bias is None else total + layer.bias[n])
    return torch.cat(maps, 1)


@pytest.mark.parametrize(("arguments", "p"), GEOMETRIES)
def test_all_forms_agree_with_the_definition(arguments: tuple[int, int, int, int, int, int, bool], p: int) -> None:
    torch.manual_seed(0)
    layer = HetConv2d(*arguments, p=p).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(layer.weight)  # also outside the mask, where it must not matter
    x = torch.randn(2, layer.in_channels, 11, 12, dtype=torch.float64)
    expected = by_definition(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(NaiveHetConv2d.from_masked(layer)(x), expected, rtol=0, atol=1e-12)


def test_the_naive_form_has_one_convolution_a_pair() -> None:
    naive = NaiveHetConv2d(6, 4, 3, p=3, padding=1)
    sizes = [tuple(m.kernel_size) for m in naive.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(sizes) == 24
    assert sizes.count((3, 3)) == 8


@pytest.mark.parametrize("channels", [1, 8])
def test_the_naive_form_refuses_other_channels(channels: int) -> None:
    with pytest.raises(UsageError, match=rf"shape \(1, {channels}, 5, 5\), expected .* with 3 channels"):
        NaiveHetConv2d(3, 4, 3, p=3, padding=1)(torch.zeros(1, channels, 5, 5))


def test_nothing_outside_the_mask_is_trained() -> None:
    layer = HetConv2d(8, 8, 3, p=4, padding=1)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert layer.weight.grad is not None
    outside = layer.mask == 0
    assert torch.count_nonzero(layer.weight.grad[outside]) == 0
    assert torch.count_nonzero(layer.weight.grad[~outside]) == int(layer.mask.sum())
    assert torch.count_nonzero(before[outside]) == 0
    assert torch.count_nonzero(layer.dense_weight()[outside]) == 0


@pytest.mark.parametrize("p", [1, 2, 3, 4, 64])
def test_initial_outputs_have_the_variance_of_kaiming(p: int) -> None:
    torch.manual_seed(1)
    layer = HetConv2d(64, 256, 3, p=p, bias=False)
    fan_in = layer.mask.flatten(1).sum(1)
    scaled = layer.dense_weight().detach().flatten(1).square().sum(1)
    # Each filter's squared norm has mean 2: fan_in draws of variance 2 / fan_in.
    assert scaled.mean() == pytest.approx(2.0, rel=0.05)
    assert int(fan_in.min()) >= 64


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((6, 4, 3, 3), 88), ((5, 10, 3, 1), 450), ((8, 8, 1, 4), 64)],
)
def test_worked_examples(arguments: tuple[int, int, int, int], expected: int) -> None:
    assert hetconv_parameters(*arguments) == expected


@pytest.mark.parametrize(("m", "n", "k", "p"), [*itertools.product((5, 8), (3, 12), (1, 3, 5), (1, 2, 4, 7))])
def test_formulas_count_what_is_there(m: int, n: int, k: int, p: int) -> None:
    layer = HetConv2d(m, n, k, p=p)
    naive = NaiveHetConv2d(m, n, k, p=p)
    counted = sum(parameter.numel() for parameter in naive.parameters())
    assert hetconv_parameters(m, n, k, p, bias=True) == layer.effective_parameters == counted
    assert hetconv_macs(m, n, k, p, (4, 5)) == layer.effective_macs((4, 5)) == (counted - n) * 20
    if m % p == 0:
        assert hetconv_parameters(m, n, k, p) == n * (m // p * k * k + m - m // p)


def vgg16_flops(p: int) -> tuple[int, int]:
    """VGG-16 on CIFAR-10, all convolutions but the first a HetConv: multiply-accumulates, and the values that poolings read."""
    sizes = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8)]
    sizes += [(256, 512, 4), (512, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2), (512, 512, 2)]
    macs = sum(hetconv_macs(m, n, 3, p if m > 3 else 1, (h, h)) for m, n, h in sizes) + 512 * 512 + 512 * 10
    pools = ((64, 16), (128, 8), (256, 4), (512, 2), (512, 1))  # (channels, side after)
    return macs, sum(pooling_operations(c, c, 2, (h, h)) for c, h in pools)


@pytest.mark.parametrize(("p", "mflop"), [(1, 313.7), (2, 175.2), (4, 106.0), (8, 71.4), (16, 54.0), (32, 45.4), (64, 41.1)])
def test_the_papers_flops_of_vgg16(p: int, mflop: float) -> None:
    """Table 1 of the paper, no biases. A pooling counts one operation for each value it reads: 0.3 % of the whole at P = 64."""
    assert sum(vgg16_flops(p)) / 1e6 == pytest.approx(mflop, rel=0.002)


def test_the_built_in_vgg16_does_what_the_formulas_say() -> None:
    network = build_network("vgg16", in_channels=3, resolution=32, conv="hetconv:64")
    read = []
    for layer in network.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    assert (count_cost(network, (torch.zeros(1, 3, 32, 32),)).macs, sum(read)) == vgg16_flops(64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 4, 2), "kernel_size is .*odd"),
        ((0, 4, 3), "in_channels is 0"),
        ((4, 4, 3, 0), "stride is"),
        ((4, 4, 3, 1, -1), "padding is"),
    ],
)
def test_impossible_arguments(arguments: tuple[int, int, int], message: str) -> None:
    for block in (HetConv2d, NaiveHetConv2d):
        with pytest.raises(UsageError, match=message):
            block(*arguments, p=2)
        with pytest.raises(UsageError, match="p is 0"):
            block(4, 4, 3, p=0)


@pytest.mark.parametrize("block", [HetConv2d, NaiveHetConv2d])
def test_the_shared_arguments_have_the_places_of_all_blocks(block: type[HetConv2d | NaiveHetConv2d]) -> None:
    """Numbers from the fourth on are stride, padding, dilation; p is given by name, so that it is never taken for a stride."""
    layer = block(4, 4, 3, 2, 1, 1, False, p=2)
    assert layer(torch.randn(1, 4, 8, 8)).shape == (1, 4, 4, 4)
    assert layer.bias is None
    with pytest.raises(TypeError, match="required keyword-only argument: 'p'"):
        block(8, 8, 3, 1, 1)  # type: ignore[call-arg]


def test_mask_pattern() -> None:
    mask = hetconv_mask(6, 4, 3, 3)
    full = mask.flatten(2).all(2)
    assert full.nonzero().tolist() == [[0, 0], [0, 3], [1, 1], [1, 4], [2, 2], [2, 5], [3, 0], [3, 3]]
    assert mask[:, :, 1, 1].all()
