"""A large graph is made functional without a second trace, to the same graph; what is not simple is left to the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from branch_forms import norm
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.node import map_arg

from edgefold.export import capture
from edgefold.export.functional import is_simple


class Code(nn.Module):
    """A network of a few kinds of ops around ``function``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head, self.function = nn.Conv2d(4, 4, 3, padding=1), norm(4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(F.relu(self.norm(self.conv(x)), inplace=True), training=self.training)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.function(y), 1), 1))


def _added(x: Tensor) -> Tensor:
    total = torch.zeros(1, 1, 6, 6)
    total.zero_()
    for channel in range(4):
        total += F.avg_pool2d(x[:, channel : channel + 1], 3, 1, 1)
    return torch.cat([total, total * 2, x[:, 2:]], 1)


def _into_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:] += 1
    return y


def _seen_by_a_view(x: Tensor) -> Tensor:
    y = x * 2
    part = y[:, :2]
    y += 1
    return torch.cat([part, y[:, 2:]], 1)


def _read_by_its_old_name(x: Tensor) -> Tensor:
    y = x * 2
    y.add_(1)
    other = y.reshape(y.shape)
    y.add_(1)
    return other


def _input(x: Tensor) -> Tensor:
    return x.mul_(2)


SIMPLE = [lambda x: x + 1, _added, lambda x: (x - 1).sigmoid() / 2]
OTHERS = [_into_a_view, _seen_by_a_view, _read_by_its_old_name, _input]


def text(graph: Graph) -> list[Any]:
    """The graph without the names of its nodes."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    return [
        (
            node.op,
            str(node.target) if node.op == "call_function" else "",
            map_arg((node.args, node.kwargs), lambda other: f"%{order[other]}"),
            str(list(node.meta.get("nn_module_stack", {}).values())),
        )
        for node in graph.nodes
    ]


def captured(function: Callable[[Tensor], Tensor], many: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Tensor, bool]:
    found: list[bool] = []

    def asked(graph: Graph) -> bool:
        found.append(is_simple(graph))
        return found[-1]

    monkeypatch.setattr(capture, "MANY", many)
    monkeypatch.setattr(capture, "is_simple", asked)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    program = capture.capture(Code(function).eval(), x)
    with torch.no_grad():
        return text(program.graph.graph), program.graph(x)[0], any(found)


@pytest.mark.parametrize("function", SIMPLE)
def test_a_simple_graph_is_the_one_that_the_exporter_makes(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, values, _ = captured(function, 10_000, monkeypatch)
    graph, found, simple = captured(function, 0, monkeypatch)
    assert simple
    assert graph == expected
    assert torch.equal(found, values)


@pytest.mark.parametrize("function", OTHERS)
def test_writes_that_something_else_sees_are_left_to_the_exporter(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, values, _ = captured(function, 10_000, monkeypatch)
    graph, found, simple = captured(function, 0, monkeypatch)
    assert not simple
    assert graph == expected
    assert torch.equal(found, values)
