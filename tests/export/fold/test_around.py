"""Code around a folded layer that asks for what it is or holds, or that writes into the network's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from branch_forms import norm
from torch import Tensor, nn

from edgefold.export.fold import FoldResult, fold_module

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
Code = Callable[[Any, Tensor], Tensor]


class Block(nn.Module):
    """A convolution and a normalization, which fold, and the attribute ``limits``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = norm(4)
        self.limits = [-2.0, 2.0]
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def features(self, x: Tensor) -> Tensor:
        """Code of a block that is no call of it."""
        return self.conv(x).relu()


class Around(nn.Module):
    """``code`` around two blocks."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.a, self.b = Block(), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4))
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def folded(module: nn.Module, x: Tensor = X) -> FoldResult:
    """The folded network, which was compared with the module for inputs far larger than the example inputs."""
    torch.manual_seed(0)
    result = fold_module(module.eval(), x)
    wide = 50 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(wide.clone())
        (actual,) = result.module(wide.clone())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    return result


def class_asked(net: Any, x: Tensor) -> Tensor:
    for part in (net.a, net.b):
        x = part(x)
        if isinstance(part, Block):
            x = x.clamp(-20, 20)
    return x


def attribute_asked(net: Any, x: Tensor) -> Tensor:
    limits = getattr(net.a, "limits", None)
    y = F.relu(net.b(x))
    return y if limits is None else y.clamp(10 * limits[0], 10 * limits[1])


def children_counted(net: Any, x: Tensor) -> Tensor:
    y = net.b(x)
    return F.relu(y.clamp(-20, 20) if len(list(net.b.children())) > 1 else y)


def constants_chosen(net: Any, x: Tensor) -> Tensor:
    limit = torch.tensor(20.0 if hasattr(net.a, "bn") else 1e6)
    return torch.minimum(F.relu(net.a(x)), limit)


def weight_tied(net: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(F.relu(net.b(x)), net.b[0].weight, padding=1)


def weight_of_a_norm(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.b(x)) * net.b[1].weight.abs().mean()


def parts_called(net: Any, x: Tensor) -> Tensor:
    y, z = F.relu(net.b(x)), x
    for layer in net.b:
        z = layer(z)
    return y + z


def method_called(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.a(x)) + net.a.features(x)


def buffer_read(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.a(x)) * net.a.scale


def modules_searched(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.b(F.relu(net.a(x))))
    return y * torch.stack([part.weight.abs().sum() for part in net.modules() if isinstance(part, nn.BatchNorm2d)]).sum()


@pytest.mark.parametrize(
    "code",
    [
        class_asked,
        attribute_asked,
        children_counted,
        constants_chosen,
        weight_tied,
        weight_of_a_norm,
        parts_called,
        method_called,
        buffer_read,
        modules_searched,
    ],
    ids=lambda code: code.__name__,
)
def test_code_that_asks_for_what_a_folded_layer_was_gets_it(code: Code) -> None:
    result = folded(Around(code))
    assert any(layer.folded for layer in result.plan.layers)


def normalized(net: Any, x: Tensor) -> Tensor:
    x.sub_(0.5).div_(0.25)
    return F.relu(net.b(x))


def cleared(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.b(x.relu_()))
    return y + x


@pytest.mark.parametrize("code", [normalized, cleared], ids=lambda code: code.__name__)
def test_a_network_may_write_into_its_input(code: Code) -> None:
    x = X.clone()
    result = folded(Around(code), x)
    assert torch.equal(x, X)
    assert torch.equal(result.program.example_inputs[0], X)
    assert any(layer.folded for layer in result.plan.layers)


def test_a_network_may_begin_with_a_layer_in_place() -> None:
    x = X.clone()
    result = folded(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, padding=1), norm(8)), x)
    assert torch.equal(x, X)
    assert [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"] == [
        "aten.relu.default",
        "aten.conv2d.default",
    ]
