"""ONNX files with integers of full range: for x86 CPUs with VNNI, and for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgefold import run
from edgefold.artifact import Artifact, Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters import onnx as emitter
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.inspect import inspect
from edgefold.export.lower.lower import lower
from edgefold.export.program import LoweredProgram, Program
from edgefold.pipeline import export_model
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.runtime.worker import OnnxModel, part
from edgefold.runtime.worker_x86 import has_vnni, is_for_vnni

IMAGE = torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lowered() -> LoweredProgram:
    """Two convolutions whose weights keep their full range: neighbours of 127 are in one pair."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    for weight in (net[0].weight, net[2].weight):
        assert isinstance(weight, nn.Parameter)
        nn.init.uniform_(weight, 0.9, 1.0)
    program = capture(net, IMAGE)
    convs = frozenset(node.name for node in program.graph.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    table = calibrate(program.graph, [(IMAGE,)], observer="minmax", full_range=convs)
    quantized = Program(attach(program.graph, table), program.example_inputs, program.input_names, program.output_names)
    return lower(quantized, format=Format.ONNX, precision=Precision.INT8)


@pytest.fixture
def emit(lowered: LoweredProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Artifact]:
    def written(*, vnni: bool, portable: bool = False, device: str = "host") -> Artifact:
        monkeypatch.setattr(emitter, "has_vnni", lambda: vnni)
        placed = replace(lowered, plan=replace(lowered.plan, device=device))
        out = tmp_path / f"{vnni}-{portable}-{device.partition(':')[0]}.onnx"
        return get_emitter(Format.ONNX).emit(placed, EmitOptions(portable=portable), out)

    return written


def weight_types(artifact: Artifact) -> set[str]:
    tensors = [tensor for tensor in onnx.load(artifact.path).graph.initializer if len(tensor.dims) == 4]
    return {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors}


def test_a_file_for_this_machine_uses_what_its_cpu_can(emit: Callable[..., Artifact]) -> None:
    fast, slow = emit(vnni=True), emit(vnni=False)
    assert (weight_types(fast), weight_types(slow)) == ({"INT8"}, {"UINT8"})
    assert (is_for_vnni(fast.path), is_for_vnni(slow.path)) == (True, False)
    np.testing.assert_array_equal(run(fast.path, IMAGE.numpy())[0], run(slow.path, IMAGE.numpy())[0])


@pytest.mark.parametrize("vnni", [True, False])
def test_constants_of_elementwise_ops_have_the_type_of_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    """Hard-swish adds a constant: of another type than its input, the addition would be computed in float."""
    monkeypatch.setattr(emitter, "has_vnni", lambda: vnni)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3)).eval()
    export_model(net, IMAGE, format="onnx", precision="int8", calibration=[IMAGE], out=tmp_path / "net.onnx")
    found = inspect(tmp_path / "net.onnx")
    assert (found.float_ops, found.conversions_inside) == (0, 0)


@pytest.mark.parametrize("vnni", [True, False])
def test_the_worker_asks_for_exact_sums_where_they_could_saturate(
    emit: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    x86 = part("worker_x86")
    monkeypatch.setattr(x86, "has_vnni", lambda: vnni)
    monkeypatch.setattr(x86.platform, "machine", lambda: "x86_64")
    fast, slow = emit(vnni=True), emit(vnni=False)
    outputs = []
    for artifact in (fast, slow):
        model = OnnxModel()
        model.load(str(artifact.path), 1)
        try:
            option = model.session.get_session_options().get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # it was not set
            option = "0"
        assert option == ("1" if artifact is fast and not vnni else "0")
        model.bind([IMAGE.numpy()])
        model.invoke()
        outputs.append(np.array(model.outputs()[0]))
    if not vnni or has_vnni():
        np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("choice", [{"portable": True}, {"device": "adb://1"}])
def test_a_portable_file_and_one_for_another_device_are_exact_everywhere(
    emit: Callable[..., Artifact], choice: dict[str, object]
) -> None:
    artifact = emit(vnni=True, **choice)
    assert weight_types(artifact) == {"UINT8"}
    assert not is_for_vnni(artifact.path)
