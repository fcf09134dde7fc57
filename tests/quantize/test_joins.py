"""Small values that are joined with large ones."""

import torch
from torch import Tensor, nn

from edgefold.export.capture import capture
from edgefold.quantize.calibrate import annotated, calibrate
from edgefold.quantize.joins import coarse_joins


class _Head(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.boxes.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.boxes(x), self.scores(x)], 1).flatten(2).transpose(1, 2)


def _findings(factor: float) -> tuple[str, ...]:
    torch.manual_seed(1)
    samples = [(torch.randn(1, 3, 4, 4),) for _ in range(4)]
    graph = capture(_Head(factor).eval(), samples[0]).graph
    return coarse_joins(annotated(graph, calibrate(graph, samples, observer="minmax")), samples)


def test_a_value_that_loses_its_steps_is_named() -> None:
    (text,) = _findings(1000.0)
    assert "'scores' (its input 1)" in text


def test_values_of_one_size_are_not() -> None:
    assert _findings(1.0) == ()
