"""Mixed precision under budgets of accuracy and time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.artifact import Artifact, Format
from edgefold.errors import CheckError, DataError, UsageError
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.verify import reference_outputs
from edgefold.mixing import Budget, mix
from edgefold.network import Evaluation, Network
from edgefold.pipeline import quantize_model


def _network(bad: tuple[int, ...]) -> Network:
    """Five convs; in the bad ones a weight of each filter is an outlier that meets zeros. The metric is 1 - relative error."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(5):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        assert conv.bias is not None
        with torch.no_grad():
            if index in bad:
                conv.weight[:, 7, 1, 1] = 60.0
            conv.weight[7], conv.bias[7] = 0.0, 0.0
            conv.weight[:7] *= 2
        layers += [conv, nn.ReLU()]
    module = nn.Sequential(*layers).eval()
    inputs = torch.randn(6, 8, 8, 8)
    inputs[:, 7] = 0
    with torch.no_grad():
        exact = module(inputs).numpy()

    def metric(outputs: Any, labels: Any) -> float:
        return 1 - float(np.linalg.norm(outputs[0] - exact) / np.linalg.norm(exact))

    return Network(
        "net", module, inputs[:1], calibration=inputs, evaluation=Evaluation((inputs,), np.zeros(6, np.int64)), metric=metric
    )


@cache
def _tolerated() -> float:
    """Three times what INT8 costs the network without bad layers, in points."""
    network = _network(())
    assert network.evaluation is not None
    program = quantize_model(network.module, network.example_inputs, calibration=network.evaluation.inputs[0], observer="minmax")
    assert network.metric is not None
    outputs = reference_outputs(program, network.evaluation.inputs)
    return 300 * (1 - network.metric(outputs, network.evaluation.labels))


@pytest.fixture(scope="module")
def bad() -> tuple[Network, Any, Any]:
    network = _network((1, 3))
    assert isinstance(network.calibration, torch.Tensor)
    samples = [(x[None],) for x in network.calibration]
    return network, quantize_model(network.module, network.example_inputs, calibration=samples, observer="minmax"), samples


def test_the_layers_that_do_harm_stay_in_float_and_no_other(bad: tuple[Network, Any, Any]) -> None:
    network, program, samples = bad
    mixed, found = mix(program, network, samples, Budget(max_drop=_tolerated()))
    assert set(found.float_layers) == {"2", "6"}
    assert mixed.float_layers == found.float_layers
    assert found.before < found.reference - _tolerated() / 100 <= found.after
    floats = {node.name for node in mixed.program.graph.graph.nodes if node.op == "call_function"} - set(mixed.table.activations)
    assert floats  # the graph that is exported lacks the parameters, too


def test_the_time_told_is_that_of_the_files_that_are_made(
    bad: tuple[Network, Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network, program, samples = bad
    times: dict[str, float] = {}
    devices = set()

    def timed(artifact: Artifact, device: str, **_: Any) -> SimpleNamespace:
        devices.add(device)
        return SimpleNamespace(median_ns=times.setdefault(artifact.sha256, 1e6 * (1 + len(times))))

    monkeypatch.setattr("edgefold.device_bench.bench", timed)
    ends = EmitOptions(io="int8", layout="nhwc")
    budget = Budget(_tolerated(), max_ms=1e3, formats=(Format.ONNX,), device="ssh://board", ends=lambda program: ends)
    mixed, found = mix(program, network, samples, budget)
    assert found.float_layers  # so that the first file is not the last
    lowered = lower(mixed.program, format=Format.ONNX, precision=mixed.scheme, device="ssh://board")
    shipped = get_emitter(Format.ONNX).emit(lowered, ends, tmp_path / "shipped.onnx")
    assert found.median_ms == {"onnx": times[shipped.sha256] / 1e6}
    assert devices == {"ssh://board"}


def test_budgets_that_cannot_be_met_fail(bad: tuple[Network, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, program, samples = bad
    fast = Budget(max_ms=1e-6, formats=(Format.ONNX,), device="fake")
    with pytest.raises(CheckError, match="the onnx file takes 1 ms on fake, expected at most 1e-06 ms"):
        mix(program, network, samples, fast)
    budget = Budget(_tolerated(), max_ms=50.0, formats=(Format.ONNX,), device="fake")
    roomy, found = mix(program, network, samples, budget)
    assert set(roomy.float_layers) == {"2", "6"}
    assert found.median_ms["onnx"] == pytest.approx(1.0, rel=0.1)
    with pytest.raises(UsageError, match="--max-drop is -1"):
        Budget(max_drop=-1.0)
    with pytest.raises(DataError, match="give --evaluation PATH"):
        mix(program, Network("net", network.module, network.example_inputs), samples, Budget(max_drop=1.0))
