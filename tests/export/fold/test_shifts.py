"""Convolutions that are written out: as products of shifted images that are added, or as contractions over the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.export.fold import FoldResult, fold_module

C, K = 6, 3
Form = Callable[[Tensor, Tensor], Tensor]


class Between(nn.Module):
    """A form in a larger forward, between two layers."""

    def __init__(self, form: Form, weight: Tensor) -> None:
        super().__init__()
        self.stem, self.form, self.weight = nn.Conv2d(3, C, 3, padding=1), form, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.form(torch.relu(self.stem(x)), self.weight))


class Alone(nn.Module):
    """A form as a module of its own."""

    def __init__(self, form: Form, weight: Tensor) -> None:
        super().__init__()
        self.form, self.weight = form, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight)


def fold(module: nn.Module, x: Tensor) -> tuple[FoldResult, list[str]]:
    """The result, which gives the outputs of the module, and its ops."""
    result = fold_module(module.eval(), x)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(result.module(x)[0], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    calls = (node for node in result.module.graph.nodes if node.op == "call_function")
    return result, [str(node.target).removeprefix("aten.").split(".")[0] for node in calls]


def between(form: Form, weight: Tensor, batch: int = 2) -> tuple[FoldResult, list[str]]:
    return fold(Between(form, weight), torch.randn(batch, 3, 9, 11))


def taps(x: Tensor, weight: Tensor, *, mode: str = "constant", value: float = 0.0, stride: int = 1) -> list[Tensor]:
    """The products of each tap, (C, 1, K, K), with the padded image, shifted."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode=mode, value=value)
    return [
        weight[:, 0, i, j].view(1, -1, 1, 1) * padded[..., i : i + height : stride, j : j + width : stride]
        for i in range(K)
        for j in range(K)
    ]


def rolled(x: Tensor, weight: Tensor, axis: int = 3) -> Tensor:
    return sum((torch.roll(x, 1 - j, axis) * weight[:, 0, 1, j].view(-1, 1, 1) for j in range(K)), start=torch.zeros(()))


def rolled_both(x: Tensor, weight: Tensor) -> Tensor:
    parts = [torch.roll(x, (1 - i, 1 - j), (2, 3)) * weight[:, 0, i, j].view(-1, 1, 1) for i in range(K) for j in range(K)]
    return torch.stack(parts).sum(0)


def padded_each(x: Tensor, weight: Tensor) -> Tensor:
    """A weight of shape (C, K, K), and a pad (or crop) for each tap."""
    weight = weight[:, 0]
    parts = [weight[:, i, j, None, None] * F.pad(x, (1 - j, j - 1, 1 - i, i - 1)) for i in range(K) for j in range(K)]
    return sum(parts[1:], start=parts[0])


def cropped(x: Tensor, weight: Tensor) -> Tensor:
    """Writes into slices of the output, without padding."""
    y = x * weight[:, 0, 1, 1].view(-1, 1, 1)
    y[:, :, 1:] += x[:, :, :-1] * weight[:, 0, 0, 1].view(-1, 1, 1)
    y[:, :, :-1] += x[:, :, 1:] * weight[:, 0, 2, 1].view(-1, 1, 1)
    return y


def accumulated(x: Tensor, weight: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for product in taps(x, weight):
        total += product
    return total


def unfolded(x: Tensor, weight: Tensor) -> Tensor:
    columns = F.unfold(x, K, padding=1).view(len(x), C, K * K, *x.shape[2:])
    return (columns * weight.view(1, C, K * K, 1, 1)).sum(2)


def windows(x: Tensor, weight: Tensor) -> Tensor:
    image = F.pad(x, (1, 1, 1, 1)).unfold(2, K, 1).unfold(3, K, 1)
    return (image * weight[:, 0, None, None]).sum((-1, -2))


def multiplied_and_added(x: Tensor, weight: Tensor) -> Tensor:
    height, width = x.shape[2:]
    total, image = torch.zeros_like(x), F.pad(x, (1, 1, 1, 1))
    for i in range(K):
        for j in range(K):
            total = torch.addcmul(total, weight[:, 0, i, j].view(1, -1, 1, 1), image[:, :, i : i + height, j : j + width])
    return total


DEPTHWISE: Final[dict[str, tuple[Form, str]]] = {
    "slices": (lambda x, w: sum(taps(x, w), start=torch.zeros(())), "k3x3 s1x1 p1,1,1,1"),
    "stride": (lambda x, w: sum(taps(x, w, stride=2), start=torch.zeros(())), "k3x3 s2x2 p1,1,1,1"),
    "reflected": (lambda x, w: torch.stack(taps(x, w, mode="reflect")).sum(0), "k3x3 s1x1 p1,1,1,1 reflect"),
    "repeated edge": (lambda x, w: torch.stack(taps(x, w, mode="replicate")).sum(0), "k3x3 s1x1 p1,1,1,1 replicate"),
    "rolls": (rolled_both, "k3x3 s1x1 p1,1,1,1 circular"),
    "rolls of lines": (rolled, "k1x3 s1x1 p0,0,1,1 circular"),
    "a pad each": (padded_each, "k3x3 s1x1 p1,1,1,1"),
    "written slices": (cropped, "k3x1 s1x1 p1,1,0,0"),
    "accumulator": (accumulated, "k3x3 s1x1 p1,1,1,1"),
    "im2col": (unfolded, "k3x3 s1x1 p1,1,1,1"),
    "windows": (windows, "k3x3 s1x1 p1,1,1,1"),
    "addcmul": (multiplied_and_added, "k3x3 s1x1 p1,1,1,1"),
    "numbers": (
        lambda x, w: 0.25 * F.pad(x, (1, 0))[..., :-1] + 0.5 * x + 0.25 * F.pad(x, (0, 1))[..., 1:],
        "k1x3 s1x1 p0,0,1,1",
    ),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_shifts_become_one_depthwise_convolution(name: str) -> None:
    form, geometry = DEPTHWISE[name]
    result, ops = between(form, torch.randn(C, 1, K, K))
    assert [op for op in ops if op != "pad"] == ["conv2d", "relu", "conv2d", "sigmoid"]
    folded = result.plan.layers[1]
    assert folded.folded
    assert folded.geometry == f"6->6 {geometry} d1x1 g6"


def test_a_module_of_shifts_folds_too() -> None:
    result, ops = fold(Alone(padded_each, torch.randn(C, 1, K, K)), torch.randn(2, C, 9, 11))
    assert ops == ["conv2d"]
    (layer,) = result.plan.layers
    assert (layer.folded, layer.kind, layer.macs) == (True, "Alone", C * K * K * 9 * 11)


def test_shifts_on_sequences_fold() -> None:
    def form(x: Tensor, weight: Tensor) -> Tensor:
        image = F.pad(torch.sigmoid(x), (2, 0))
        parts = [image[..., j : j + x.shape[2]] * weight[:, 0, 0, j, None] for j in range(K)]
        return torch.sigmoid(parts[0] + parts[1] + parts[2])

    _, ops = fold(Alone(form, torch.randn(C, 1, K, K)), torch.randn(2, C, 20))
    assert ops == ["sigmoid", "pad", "conv1d", "sigmoid"]


POINTWISE: Final[dict[str, Form]] = {
    "einsum": lambda x, w: torch.einsum("bchw,oc->bohw", x, w),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=([1], [1])).permute(0, 3, 1, 2),
    "tensordot, weight first": lambda x, w: torch.tensordot(w, x, dims=([1], [1])).transpose(0, 1),
    "products": lambda x, w: (x[:, None] * w[None, :, :, None, None]).sum(2),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_a_contraction_over_channels_becomes_a_pointwise_convolution(name: str) -> None:
    result, ops = between(POINTWISE[name], torch.randn(8, C))
    assert ops == ["conv2d", "relu", "conv2d", "sigmoid"]
    assert result.plan.layers[1].geometry == "6->8 k1x1 s1x1 p0,0,0,0 d1x1 g1"


def turned(x: Tensor, weight: Tensor) -> Tensor:
    """Rows that each are shifted by the weights of their own."""
    rows = [x[:, :, r] * weight[:, 0, r % 3, :1] + torch.roll(x, 1, 2)[:, :, r] * weight[:, 0, r % 3, 1:2] for r in range(9)]
    return torch.stack(rows, 2)


def ramped(x: Tensor, weight: Tensor) -> Tensor:
    ramp = torch.linspace(0.5, 1.5, x.shape[3])
    return torch.stack([product * (ramp + index) for index, product in enumerate(taps(x, weight))]).sum(0)


TRAPS: Final[dict[str, tuple[Form, str]]] = {
    "weights of each position": (ramped, "weights depend on the position"),
    "rows of their own": (turned, "weights depend on the position"),
    "roll over the batch": (lambda x, w: rolled(x, w, axis=0), "mixes the samples of a batch"),
    "roll over the channels and lines": (
        lambda x, w: sum((torch.roll(x, 1 - j) * w[:, 0, 1, j].view(-1, 1, 1) for j in range(K)), start=torch.zeros(())),
        "mixes the samples of a batch",
    ),
    "mirrored": (lambda x, w: x * w[:, 0, 0, :1, None] + x.flip(3) * w[:, 0, 1, :1, None], "weights depend on the position"),
    "contraction over lines": (lambda x, w: torch.einsum("bchw,hg->bcgw", x, w[:3, 0].reshape(-1, 3).repeat(1, 3)), "position"),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", TRAPS)
def test_what_only_looks_like_shifts_stays_with_its_reason(name: str, batch: int) -> None:
    form, reason = TRAPS[name]
    result, ops = between(form, torch.randn(C, 1, K, K), batch)
    assert ops.count("conv2d") == 1
    layer = result.plan.layers[-1]
    assert not layer.folded
    assert reason in layer.reason
    assert layer.ops_before > 0


MIXTURES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "mean": lambda x: x.mean(0, keepdim=True),
    "first": lambda x: x[:1],
    "contraction": lambda x: torch.einsum("bchw->chw", x),
    "roll": lambda x: x.roll(1, 0),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MIXTURES)
def test_code_that_holds_the_batch_size_and_mixes_its_samples_stays(name: str, batch: int) -> None:
    """Its graph for one sample cannot be run on two."""

    def form(x: Tensor, weight: Tensor) -> Tensor:
        mixed = x * weight[:, 0, 0, :1, None] + MIXTURES[name](x) * weight[:, 0, 1, :1, None]
        return mixed.view(len(x), 2, C // 2, *x.shape[2:]).flatten(1, 2)

    result, ops = between(form, torch.randn(C, 1, K, K), batch)
    assert ops.count("conv2d") == 1
    assert batch > 1 or "mixes the samples of a batch" in result.plan.layers[-1].reason


def test_code_that_holds_the_batch_size_folds_where_samples_stay_apart() -> None:
    def form(x: Tensor, weight: Tensor) -> Tensor:
        return rolled(x, weight).view(len(x), 2, C // 2, *x.shape[2:]).flatten(1, 2)

    _, ops = between(form, torch.randn(C, 1, K, K), batch=1)
    assert ops == ["conv2d", "relu", "pad", "conv2d", "sigmoid"]


def test_a_sum_over_the_whole_image_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a convolution it would have a weight for each position, which to find takes half a minute at 56 x 56."""
    for function in ("locate", "probe"):
        monkeypatch.setattr(f"edgefold.export.fold.attempt.{function}", lambda *_, **__: pytest.fail("not needed"))

    def form(x: Tensor, weight: Tensor) -> Tensor:
        return (x * weight[:, 0, :1, :1]).sum((2, 3), keepdim=True)

    result, ops = fold(Alone(form, torch.randn(C, 1, K, K)), torch.randn(2, C, 12, 14))
    assert ops[-2:] == ["mul", "sum"]
    assert "a sum over the whole image" in result.plan.layers[0].reason


def test_a_clamp_between_the_taps_keeps_them_apart() -> None:
    def form(x: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for product in taps(x, weight):
            total = (total + product).clamp(-1, 1)
        return total

    _, ops = between(form, torch.randn(C, 1, K, K))
    assert ops.count("conv2d") == 1


def test_an_edge_that_no_convolution_has_stays_a_pad() -> None:
    def form(x: Tensor, weight: Tensor) -> Tensor:
        image = F.pad(x, (1, 0, 0, 0), mode="replicate")  # on the left only; zeros elsewhere
        height, width = x.shape[2:]
        image = F.pad(image, (0, 1, 1, 1))
        return torch.stack(
            [weight[:, 0, i, j, None, None] * image[..., i : i + height, j : j + width] for i in range(K) for j in range(K)]
        ).sum(0)

    _, ops = between(form, torch.randn(C, 1, K, K))
    assert ops == ["conv2d", "relu", "pad", "pad", "conv2d", "sigmoid"]


def test_a_product_with_a_value_of_the_image_stays_outside() -> None:
    _, ops = between(lambda x, w: rolled(x, w) * x.mean((2, 3), keepdim=True), torch.randn(C, 1, K, K))
    assert ops == ["conv2d", "relu", "pad", "conv2d", "mean", "mul", "sigmoid"]


def test_scales_and_residuals_are_no_convolutions() -> None:
    result, ops = between(lambda x, w: (x * w[:, 0, :1, :1] + 1).tanh() + x * 0.5, torch.randn(C, 1, K, K))
    assert ops.count("conv2d") == 1
    assert [layer.name for layer in result.plan.layers] == ["stem"]
