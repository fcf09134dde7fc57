"""Means of rows as means of images: the same numbers, and one call of ExecuTorch's delegate in integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.inspect import inspect
from edgefold.export.passes.row_means import row_means
from edgefold.export.verify import reference_outputs

ROWS = torch.randn(8, 6, 11, generator=torch.Generator().manual_seed(0))
MEANS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "adaptive": nn.functional.adaptive_avg_pool1d,
    "mean": lambda x, _: x.mean(2, keepdim=True),
    "last": lambda x, _: x.mean(-1)[:, :, None],
}


class _Keywords(nn.Module):
    def __init__(self, mean: str) -> None:
        super().__init__()
        self.conv, self.head, self.mean = nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 4), mean

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(MEANS[self.mean](torch.relu(self.conv(x)), 1).flatten(1))
        return y


@pytest.mark.parametrize("mean", MEANS)
def test_the_numbers_stay(mean: str) -> None:
    torch.manual_seed(0)
    program = capture(_Keywords(mean).eval(), ROWS)
    add_values(program.graph, (ROWS,))
    changed, modified = row_means(program.graph)
    assert modified
    torch.testing.assert_close(changed(ROWS)[0], program.graph(ROWS)[0], rtol=1e-5, atol=1e-6)
    targets = [node.target for node in changed.graph.nodes]
    assert torch.ops.aten.adaptive_avg_pool1d.default not in targets
    assert targets.count(torch.ops.aten.mean.dim) == 1


@pytest.mark.parametrize(
    "other",
    [nn.AdaptiveAvgPool1d(2), nn.AvgPool1d(2)],
    ids=["of several windows", "of a fixed window"],
)
def test_other_pooling_stays(other: nn.Module) -> None:
    program = capture(other.eval(), ROWS[:, :, :10])
    add_values(program.graph, (ROWS[:, :, :10],))
    assert row_means(program.graph)[1] is False


class _Halves(nn.Module):
    """A value that is a list of tensors stands before one of them."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([second, first.mean(2, keepdim=True).expand_as(first)], 1)


def test_a_list_of_tensors_is_no_row() -> None:
    program = capture(_Halves().eval(), ROWS)
    add_values(program.graph, (ROWS,))
    changed, modified = row_means(program.graph)
    assert modified
    torch.testing.assert_close(changed(ROWS)[0], _Halves()(ROWS))


@pytest.mark.parametrize("mean", ["adaptive", pytest.param("last", marks=pytest.mark.slow)])
def test_a_file_is_integer_in_one_call_of_the_delegate(mean: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = edgefold.quantize_model(_Keywords(mean).eval(), ROWS[:1], calibration=ROWS)
    artifact = edgefold.export_model(quantized, format=Format.EXECUTORCH, timing=False, out=tmp_path / "net.pte")
    seen = inspect(artifact.path)
    assert (seen.partitions, seen.float_ops, seen.fallback_modules) == (1, 0, ())
    (found,) = edgefold.run(artifact, ROWS.numpy())
    (expected,) = reference_outputs(quantized, (ROWS,), batch=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
