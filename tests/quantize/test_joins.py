"""Small values that are joined with large ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgefold.export.capture import capture
from edgefold.quantize.calibrate import annotated, calibrate
from edgefold.quantize.joins import coarse_joins, join_in_float, steps_of
from edgefold.quantize.scheme import JOINED_FLOAT, Q

Tail = Callable[[Tensor], Tensor]


class _Head(nn.Module):
    def __init__(self, factor: float, tail: Tail = lambda y: y.flatten(2).transpose(1, 2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), tail
        self.last = nn.Conv2d(6, 2, 1)
        with torch.no_grad():
            self.boxes.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([self.boxes(x), self.scores(x)], 1))


def _graph(head: _Head) -> tuple[GraphModule, list[tuple[Tensor, ...]]]:
    torch.manual_seed(1)
    samples: list[tuple[Tensor, ...]] = [(torch.randn(1, 3, 4, 4),) for _ in range(4)]
    return capture(head.eval(), samples[0]).graph, samples


def _findings(factor: float) -> tuple[str, ...]:
    graph, samples = _graph(_Head(factor))
    return coarse_joins(annotated(graph, calibrate(graph, samples, observer="minmax")), samples)


def test_a_value_that_loses_its_steps_is_named() -> None:
    (text,) = _findings(1000.0)
    assert "'scores' (its input 1)" in text
    assert "return it as an output of its own, or take precision int8 with --io float32" in text


def test_values_of_one_size_are_not() -> None:
    assert _findings(1.0) == ()


@pytest.mark.parametrize(
    "tail",
    [
        lambda y: y,
        lambda y: y.flatten(2).permute(0, 2, 1),
        lambda y: torch.cat([y, y], 2).reshape(1, 6, 2, -1)[:, :, :, :3],
        lambda y: torch.cat(y.split([2, 4], 1)[::-1], 1),
        torch.exp,  # float anyway
    ],
)
def test_a_join_before_an_output_stays_in_float(tail: Tail) -> None:
    graph, samples = _graph(_Head(1000.0, tail))
    (text,) = join_in_float(graph, samples)
    assert "joins 'scores' (its input 1) in float" in text
    table = calibrate(graph, samples, observer="minmax")
    small, large = table.activations["conv2d_1"].scale, table.activations["conv2d"].scale
    assert small < large / 100
    assert set(table.activations) == {"x", "conv2d", "conv2d_1"}
    assert coarse_joins(annotated(graph, table), samples) == ()


@pytest.mark.parametrize("tail", [lambda y: y + y, lambda y: y.mean(1), lambda y: y.flatten(2).softmax(1)])
def test_a_join_that_integer_ops_read_does_not(tail: Tail) -> None:
    graph, samples = _graph(_Head(1000.0, tail))
    assert join_in_float(graph, samples) == ()
    assert not any(JOINED_FLOAT in node.meta for node in graph.graph.nodes)


def test_values_of_one_size_are_joined_in_integers() -> None:
    graph, samples = _graph(_Head(1.0))
    assert join_in_float(graph, samples) == ()
    assert "cat" in calibrate(graph, samples, observer="minmax").activations


def test_each_element_of_a_join_in_float_has_the_step_of_its_part() -> None:
    graph, samples = _graph(_Head(1000.0))
    join_in_float(graph, samples)
    marked = annotated(graph, calibrate(graph, samples, observer="minmax"))
    nodes = {node.name: node for node in marked.graph.nodes}
    steps = steps_of(next(iter(marked.graph.output_node().all_input_nodes)))
    assert isinstance(steps, Tensor)
    assert steps.shape == (1, 16, 6)
    for part, name in ((steps[..., :4], "conv2d"), (steps[..., 4:], "conv2d_1")):
        assert set(part.flatten().tolist()) == {torch.tensor(nodes[name].meta[Q].scale).item()}
