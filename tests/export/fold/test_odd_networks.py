"""Networks that are made or called in unusual ways fold, or say what is wrong with them."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import ModelError, UnsupportedError
from edgefold.export.fold import FoldResult, fold_module, unfolded
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.shadow import shadow

IMAGE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))


def assert_folds(module: nn.Module, image: Tensor = IMAGE) -> FoldResult:
    result = fold_module(module, image)
    assert any(layer.folded for layer in result.plan.layers)
    with torch.no_grad():
        expected = module(image)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, one in zip(result.module(image), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=0, atol=1e-5)
    return result


def test_a_network_folds_under_inference_mode() -> None:
    net = nn.Sequential(normed(), nn.ReLU()).eval()
    with torch.inference_mode():
        plan, written = fold_module(net, IMAGE.clone()).plan, unfolded(net, IMAGE.clone())
    assert [layer.folded for layer in plan.layers] == [True]
    assert not written.plan.layers


@pytest.mark.parametrize("act", [fold_module, unfolded])
@pytest.mark.parametrize("kind", ["inference", "lazy", "sparse"])
def test_weights_that_no_graph_can_hold_are_named(act: Any, kind: str) -> None:
    net = nn.Sequential(normed(), nn.ReLU())
    if kind == "inference":
        with torch.inference_mode():
            net = nn.Sequential(normed(), nn.ReLU())
    elif kind == "lazy":
        net = nn.Sequential(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), nn.ReLU())
    else:
        net.register_buffer("mask", torch.eye(4).to_sparse())
    message = {
        "inference": "weight '0.0.weight' was made under",
        "lazy": "weight '0.0.weight' of a lazy layer",
        "sparse": "'mask'",
    }
    with pytest.raises(ModelError, match=message[kind]):
        act(net.eval(), IMAGE)


def test_an_empty_output_is_one_output() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = normed()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.block(x)
            return y, y[..., :0]

    assert_folds(Cut().eval())


class Holds(nn.Module):
    """A block beside something in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.block = normed()
        self.held: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x).relu()
        return y


def test_a_weak_proxy_of_a_block_is_no_block() -> None:
    net = Holds().eval()
    net.held.append(weakref.proxy(net.block))
    assert_folds(net)


def test_containers_may_hold_themselves() -> None:
    net = Holds().eval()
    net.held += [net.held, {"all": net.held}]
    decisions = fold_tree(net, (IMAGE,), {}).decisions
    assert [decision.name for decision in decisions if decision.folded is not None] == ["block"]
    with pytest.raises(UnsupportedError, match="recursion"):  # of PyTorch's exporter
        fold_module(net, IMAGE)


def test_a_list_that_two_blocks_share_stays_shared() -> None:
    class Counts(Holds):
        def forward(self, x: Tensor) -> Tensor:
            self.held.append(1)
            return super().forward(x) * float(len(self.held) < 3)

    net = nn.Sequential(Counts(), Counts(), Counts()).eval()
    for other in net[1:]:
        vars(other)["held"] = net[0].held
    copies: Any = shadow(net)
    with torch.no_grad():
        assert not bool(copies(IMAGE).any())


def test_a_float64_network_with_a_norm_behind_a_linear_layer() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.linear, self.norm = normed(), nn.Linear(4, 8), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.linear(self.block(x).relu().mean((2, 3))))
            return y

    assert_folds(Head().double().eval(), IMAGE.double())


@pytest.mark.parametrize("form", ["lerp", "addcdiv"])
def test_other_affine_ops_fold(form: str) -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            a, b, scale = self.one(x), self.two(x), self.get_buffer("scale")
            return torch.lerp(a, b, 0.25) if form == "lerp" else torch.addcdiv(a, b, scale, value=0.5)

    (layer,) = assert_folds(nn.Sequential(Mixes(), nn.ReLU()).eval()).plan.layers
    assert layer.folded
