"""Geometry: stride, padding, dilation and borders are recovered, also where the module takes one size only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.export.fold.field import Axis, Field
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.kernel import FoldedConv, Kernel
from edgefold.export.fold.probe import macs_by_sample, probe

Function = Callable[[Tensor], Tensor]


class Code(nn.Module):
    """A function as a module. ``fixed`` lets it take one size only."""

    def __init__(self, function: Function, fixed: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.function = function
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and tuple(x.shape[2:]) != self.fixed:
            raise ValueError("another size")
        return self.function(x)


def kernel_of(function: Function, shape: tuple[int, ...], *, fixed: bool = False) -> Kernel:
    x = torch.randn(shape)
    tree = fold_tree(Code(function, shape[2:] if fixed else ()).eval(), (x,), {})
    assert isinstance(tree.module, FoldedConv), [decision.reason for decision in tree.decisions]
    return tree.module.kernel


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((5, 2), (2, 1), (2, 0), (1, 3)),
        ((1, 4), (3, 2), (0, 3), (1, 1)),
        ((3, 3), (2, 2), (2, 2), (2, 2)),
        ((2, 2), (2, 2), (0, 0), (1, 1)),
        ((7, 1), (1, 3), (3, 0), (1, 1)),
    ],
)
def test_a_masked_convolution_gets_its_geometry_back(
    size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], fixed: bool
) -> None:
    weight = torch.randn(4, 3, *size)

    kernel = kernel_of(lambda x: F.conv2d(x, weight * 2, None, stride, padding, dilation), (1, 3, 12, 13), fixed=fixed)

    assert tuple(kernel.weight.shape) == tuple(weight.shape)
    assert kernel.stride == stride
    assert [before for before, _ in kernel.padding] == list(padding)
    assert all(d == wanted for d, wanted, k in zip(kernel.dilation, dilation, size, strict=True) if k > 1)
    torch.testing.assert_close(kernel.weight, weight * 2, rtol=1e-6, atol=0)


def test_padding_may_differ_on_each_side() -> None:
    weight = torch.randn(4, 3, 4, 4)
    kernel = kernel_of(lambda x: F.conv2d(F.pad(x, (1, 2, 0, 3)), weight), (1, 3, 11, 12))
    assert kernel.padding == ((0, 3), (1, 2))


def test_padding_as_in_tensorflow_depends_on_the_size() -> None:
    weight = torch.randn(4, 3, 3, 3)

    def same(x: Tensor) -> Tensor:
        sizes = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[2:]]
        height, width = sizes
        return F.conv2d(F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)), weight, stride=2)

    assert kernel_of(same, (1, 3, 56, 56)).padding == ((0, 1), (0, 1))
    assert kernel_of(same, (1, 3, 57, 56)).padding == ((1, 1), (0, 1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_borders_become_a_pad(mode: str) -> None:
    weight = torch.randn(4, 3, 3, 3)
    kernel = kernel_of(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight) * 2, (2, 3, 9, 9))
    assert kernel.mode == mode
    assert kernel.padding == ((1, 1), (1, 1))


def test_a_kernel_as_large_as_the_input_is_found() -> None:
    weight = torch.randn(2, 3, 7, 7)
    kernel = kernel_of(lambda x: F.conv2d(x, weight, padding=3) + 1, (1, 3, 5, 5), fixed=True)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(kernel(x), F.conv2d(x, weight, padding=3) + 1, rtol=0, atol=1e-4)


def test_an_input_of_one_pixel_shows_the_centre_only() -> None:
    weight = torch.randn(4, 3, 3, 3)
    kernel = kernel_of(lambda x: F.conv2d(x, weight, padding=1) * 0.5, (1, 3, 1, 1), fixed=True)
    x = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(kernel(x), F.conv2d(x, weight, padding=1) * 0.5, rtol=0, atol=1e-5)


def test_groups_are_kept_where_nothing_crosses_them() -> None:
    weight, scale = torch.randn(6, 2, 3, 3), torch.randn(6, 1, 1)
    assert kernel_of(lambda x: F.conv2d(x, weight, groups=3) * scale, (1, 6, 8, 8)).groups == 3


def test_depthwise_stays_depthwise() -> None:
    first, second = torch.randn(8, 1, 3, 3), torch.randn(8, 1, 1, 1)
    kernel = kernel_of(lambda x: F.conv2d(x, first, padding=1, groups=8) + F.conv2d(x, second, groups=8), (1, 8, 9, 9))
    assert kernel.groups == 8


def test_cancelled_weights_become_exact_zeros() -> None:
    wide, point = torch.randn(4, 2, 3, 3), torch.randn(4, 4, 1, 1)
    inner = torch.cat([point[:2, :2], point[2:, 2:]])

    def plus_minus(x: Tensor) -> Tensor:
        return F.conv2d(x, wide, padding=1, groups=2) + F.conv2d(x, point) - F.conv2d(x, inner, groups=2)

    kernel = kernel_of(plus_minus, (1, 4, 8, 8))
    outside = kernel.weight.clone()
    outside[:, :, 1, 1] = 0
    outside[:2, :2] = 0
    outside[2:, 2:] = 0
    assert not outside.any()


def test_a_large_bias_costs_no_weight_its_digits() -> None:
    weight, bias = torch.randn(4, 3, 3, 3), torch.full((4,), 1e6)
    kernel = kernel_of(lambda x: F.conv2d(x, weight, None, padding=1) + bias.view(-1, 1, 1), (1, 3, 8, 8))
    torch.testing.assert_close(kernel.weight, weight, rtol=1e-6, atol=1e-7)


def test_a_mean_over_the_image_is_refused_before_it_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(16, 48, 1, 1)

    def gate(x: Tensor) -> Tensor:
        return F.conv2d(x.mean((2, 3), keepdim=True), weight)

    # 1,600 taps of 49 channels would be 78,400 images.
    monkeypatch.setattr("edgefold.export.fold.attempt.probe", lambda *_, **__: pytest.fail("it was probed"))
    tree = fold_tree(Code(gate).eval(), (torch.randn(1, 48, 40, 40),), {})
    assert "needs 77,568" in tree.decisions[0].reason


@pytest.mark.parametrize("size", [7, 27])
def test_a_gate_that_is_dearer_by_less_than_twice_is_refused_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples reach both outputs, so their count is sure; at 27 x 27 a probe would take 729 taps of 48 channels."""
    weight = torch.randn(2, 48, 1, 1)

    def gate(x: Tensor) -> Tensor:
        return F.conv2d(x.mean((2, 3), keepdim=True), weight)

    for name in ("probe", "locate"):
        monkeypatch.setattr(f"edgefold.export.fold.attempt.{name}", lambda *_, **__: pytest.fail("more work than one run"))
    tree = fold_tree(Code(gate).eval(), (torch.randn(1, 48, size, size),), {})
    assert f"would need about {2 * 48 * size * size:,} multiply-accumulates" in tree.decisions[0].reason


def test_what_sees_the_whole_image_folds_where_that_is_no_dearer() -> None:
    weight = torch.randn(1, 48, 1, 1)

    def last(x: Tensor) -> Tensor:
        return F.conv2d(x.mean((2, 3), keepdim=True), weight)

    (decision,) = fold_tree(Code(last).eval(), (torch.randn(1, 48, 7, 7),), {}).decisions
    assert decision.folded is not None
    torch.testing.assert_close(decision.folded.kernel.weight, weight.expand(1, 48, 7, 7) / 49)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_multiply_accumulates_are_estimated_from_few_impulses(groups: int) -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1, groups=groups).double()
    exact = 32 * 16 // groups * 9 * 30 * 30
    with torch.no_grad():
        found, _ = macs_by_sample(conv, (1, 16, 30, 30), torch.float64)
    assert exact * 0.8 < found <= exact


def test_samples_that_reach_unequally_many_outputs_are_told() -> None:
    """A mean over half of the channels: the other half reaches nothing."""
    found, even = macs_by_sample(lambda x: x[:, :8].mean((2, 3), keepdim=True), (1, 16, 9, 9), torch.float64)
    assert not even
    assert 0.25 * 16 * 81 < found < 0.75 * 16 * 81
    assert macs_by_sample(lambda x: x.mean((2, 3), keepdim=True), (1, 16, 9, 9), torch.float64) == (16 * 81, True)


def test_an_image_of_impulses_keeps_to_its_limit() -> None:
    sizes = list[int]()

    def wide(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return F.conv2d(x, weight, padding=6)

    weight = torch.randn(4, 96, 13, 13)
    call = Field((Axis(1, -6, 6), Axis(1, -6, 6)), 1)
    kernel = probe(wide, (1, 96, 20, 20), (1, 4, 20, 20), call, torch.float32, resize=True)
    rounding = 32 * torch.finfo(torch.float32).eps * float(weight.abs().amax())  # weights below it are set to zero
    torch.testing.assert_close(kernel.weight, weight, rtol=1e-4, atol=rounding)
    assert max(sizes) <= 2 << 23


class Mixed(nn.Module):
    """Depthwise convolutions of several sizes on pieces of the channels (MixConv), and a BatchNorm."""

    def __init__(self, pieces: dict[int, int]) -> None:
        super().__init__()
        self.sizes = tuple(pieces.values())
        self.convs = nn.ModuleList(nn.Conv2d(c, c, k, padding=k // 2, groups=c, bias=False) for k, c in pieces.items())
        self.norm = nn.BatchNorm2d(sum(self.sizes))

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, list(self.sizes), 1)
        return self.norm(torch.cat([conv(piece) for conv, piece in zip(self.convs, pieces, strict=True)], 1))


def test_depthwise_convolutions_of_pieces_of_the_channels_are_probed_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list[Field]()

    def watched(
        f: Function, shape: tuple[int, ...], out_shape: tuple[int, ...], field: Field, *rest: Any, **options: Any
    ) -> Kernel:
        fields.append(field)
        return probe(f, shape, out_shape, field, *rest, **options)

    monkeypatch.setattr("edgefold.export.fold.attempt.probe", watched)
    module = Mixed({1: 2, 3: 14}).eval()
    tree = fold_tree(module, (torch.randn(1, 16, 9, 9),), {})
    assert [field.blocks_of(16, 16) for field in fields] == [16]
    assert isinstance(tree.module, FoldedConv)
    assert tree.module.kernel.groups == 16
