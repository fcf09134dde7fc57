"""Functions that are one convolution in float64 or in larger batches, and another function in the network itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.kernel import FoldedConv

Function = Callable[[Any, Tensor], Tensor]
STEPS = 1.5 * 2.0**14  # a number this large has steps of 2**-9 in float32


class Branches(nn.Module):
    """Two convolutions in the hands of ``function``."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.wide, self.point, self.function = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def sum(self, x: Tensor) -> Tensor:
        """What is one convolution."""
        return self.wide(x) + self.point(x)


def rounded(net: Any, x: Tensor) -> Tensor:
    return net.wide((x + STEPS) - STEPS) + net.point(x)


def rounded_after(net: Any, x: Tensor) -> Tensor:
    return (net.sum(x) + STEPS) - STEPS


def cast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        y = net.wide(x)
    return y.float() + net.point(x)


def by_batch(net: Any, x: Tensor) -> Tensor:
    return net.sum(x) * (1.0 + 2e-4 / x.shape[0])


def by_type(net: Any, x: Tensor) -> Tensor:
    return net.sum(x) * (1.0005 if x.dtype == torch.float32 else 1.0)


def overflowing(net: Any, x: Tensor) -> Tensor:
    return net.sum((x * 1e38) * 100.0 * 1e-40)


def faint(net: Any, x: Tensor) -> Tensor:
    """A channel so faint that float32 would not show its weights of each position beside those of the others."""
    scale = torch.ones(4, 1, x.shape[3], dtype=x.dtype)
    scale[0] = 1e-9 * torch.linspace(1, 2, x.shape[3], dtype=x.dtype)
    return net.sum(x) * scale


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (faint, "depend on the position"),
        (rounded, "in float32"),
        (rounded_after, "in float32"),
        (cast, "rounds values to float16"),
        (by_batch, "a batch of 1"),
        (by_type, "in float32"),
        (overflowing, "not finite in float32"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_function_that_is_another_one_in_the_network_stays(function: Function, reason: str) -> None:
    torch.manual_seed(0)
    tree = fold_tree(Branches(function).eval(), (torch.randn(1, 4, 10, 10),), {})
    assert not isinstance(tree.module, FoldedConv)
    assert reason in tree.decisions[0].reason


def test_the_rounding_of_ordinary_code_is_none_of_these() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64, eps=1e-3)).eval()
    tree = fold_tree(module, (torch.randn(1, 64, 9, 9),), {})
    assert isinstance(tree.module, FoldedConv), tree.decisions[0].reason


def test_layers_of_zeros_have_no_error() -> None:
    net = Branches(Branches.sum).eval()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    (layer,) = fold_module(net, torch.randn(1, 4, 10, 10)).plan.layers
    assert (layer.folded, layer.max_relative_error) == (True, 0.0)


def test_functional_code_that_is_another_one_for_the_example_inputs_stays() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.conv2d(torch.relu(x) * 1e37 * 1e-37, self.weight))

    torch.manual_seed(0)
    x = torch.full((1, 2, 4, 4), 1000.0)
    module = Overflows().eval()
    result = fold_module(module, x)
    assert [layer.folded for layer in result.plan.layers] == [False]
    assert sum(str(node.target) == "aten.mul.Tensor" for node in result.module.graph.nodes) == 2
    with torch.no_grad():
        torch.testing.assert_close(result.module(x)[0], module(x), equal_nan=True)


def test_weights_that_are_normalized_in_every_call_fold() -> None:
    class Limited(nn.Conv2d):
        """The layer of EEGNet whose weights have a greatest norm."""

        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
            return super().forward(x)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(Limited(4, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.ReLU(), Limited(4, 4, 1)).eval()
    x = torch.randn(1, 4, 10, 10)
    result = fold_module(module, x)
    ops = [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"]
    assert ops == ["aten.conv2d.default", "aten.relu.default", "aten.conv2d.default"]
    with torch.no_grad():
        torch.testing.assert_close(result.module(x)[0], module(x), rtol=0, atol=1e-5)
