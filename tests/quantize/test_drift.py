"""The drift map, on runtimes whose differences are made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule

from edgefold.export.capture import capture
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.drift import DriftReport, drift_map, expose
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import Q


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        return self.third(torch.relu(self.second(y)) + y)


@pytest.fixture(scope="module")
def probe() -> tuple[GraphModule, tuple[str, ...], list[NDArray[Any]]]:
    """The exposed graph, the names of its values, and the values themselves on their grids."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    graph = capture(_Net().eval(), x).graph
    attached = attach(graph, calibrate(graph, [(x,)], observer="minmax"))
    exposed, names = expose(attached)
    with torch.no_grad():
        values = insert_qdq(exposed, fold_weights=True)(x)
    return exposed, names, [value.numpy() for value in values]


def _moved(values: list[NDArray[Any]], graph: GraphModule, names: tuple[str, ...], **steps: int) -> list[NDArray[Any]]:
    """A copy in which the first element of some values is a number of steps off."""
    nodes = {node.name: node for node in graph.graph.nodes}
    moved = [value.copy() for value in values]
    for name, count in steps.items():
        moved[names.index(name)].flat[0] += count * nodes[name].meta[Q].scale
    return moved


def test_drift_begins_where_the_inputs_agree_and_is_passed_on_after(probe: Any) -> None:
    graph, names, values = probe
    inner = next(name for name in names if name.startswith("relu_1"))
    after = names[names.index(inner) + 1 :]
    other = _moved(values, graph, names, **{inner: 1, after[0]: 1, after[-1]: 3})
    rows = drift_map(graph, names, {"torch": values, "onnx": values, "tflite": other}, {})
    found = {row.node: row for row in rows}
    assert not found[names[0]].cause
    assert found[names[0]].max_steps == 0
    assert found[inner].begins
    assert found[inner].cause == "rounding of conv2d + relu in tflite"
    assert found[inner].name == "second"
    assert [found[name].cause for name in after] == ["passed on"] * len(after)
    assert found[after[-1]].max_steps == 3
    report = DriftReport(("torch", "onnx", "tflite"), 1, rows)
    assert report.counts("torch", "onnx") == {"identical": len(names), "one step": 0, "more": 0}
    assert report.counts("onnx", "tflite")["more"] == 1


def test_another_pair_may_begin_where_one_only_passes_on(probe: Any) -> None:
    graph, names, values = probe
    first, last = names[0], names[-1]
    early, late = _moved(values, graph, names, **{first: 1, last: 1}), _moved(values, graph, names, **{last: 2})
    rows = {row.node: row for row in drift_map(graph, names, {"torch": values, "onnx": early, "tflite": late}, {})}
    begins = {(one.first, one.second) for one in rows[last].differences if one.begins}
    assert ("torch", "tflite") in begins
    assert rows[last].begins


def test_a_difference_of_numeric_class_is_named_as_the_cause(probe: Any) -> None:
    graph, names, values = probe
    last = names[-1]
    classes = {"onnx": {"third": "fused"}, "tflite": {"third": "branched"}}
    (row,) = [
        row
        for row in drift_map(graph, names, {"onnx": values, "tflite": _moved(values, graph, names, **{last: 1})}, classes)
        if row.begins
    ]
    assert row.cause == "numeric class of 'third' (onnx: fused, tflite: branched)"
