"""A network that was kept as a file gives the same artifacts, byte for byte, as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Precision
from edgefold.errors import ArtifactError, UnsupportedError
from edgefold.export.fold import FoldResult
from edgefold.export.program import Program, QuantizedProgram
from edgefold.export.saved import load_program, load_quantized, save_program, save_quantized
from edgefold.models.blocks import HetConv2d
from edgefold.pipeline import export_model, fold, quantize_model
from edgefold.preprocess import Preprocessing


class _Net(nn.Module):
    """Splits, joins, a padding, hard-swish, a mean and a scale: the kinds of arguments that nodes have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.het = HetConv2d(8, 8, 3, p=2, padding=1)
        self.head = nn.Linear(8, 4)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y = torch.cat([b, torch.relu(a)], 1)
        y = self.het(y + self.shift).clamp(0.0, 6.0)
        z: Tensor = self.head(nn.functional.pad(y, (0, 1)).mean((2, 3)).float())
        return z


@pytest.fixture(scope="module")
def folded() -> FoldResult:
    torch.manual_seed(0)
    return fold(_Net().eval(), torch.randn(1, 3, 16, 16))


def _sha256(model: FoldResult | QuantizedProgram, path: Path) -> str:
    pixels = isinstance(model, QuantizedProgram) and model.pixels is not None
    return export_model(model, format="onnx", timing=False, io="uint8" if pixels else "float32", out=path).sha256


def test_a_folded_network_comes_back(folded: FoldResult, tmp_path: Path) -> None:
    save_program(folded.program, tmp_path / "net")
    found = load_program(tmp_path / "net")
    again = FoldResult(found, folded.plan)
    assert found.input_names == folded.program.input_names
    assert [node.name for node in found.graph.graph.nodes] == [node.name for node in folded.program.graph.graph.nodes]
    assert _sha256(again, tmp_path / "again.onnx") == _sha256(folded, tmp_path / "first.onnx")
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.graph(image), folded.program.graph(image), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", [Precision.INT8, Precision.INT8_WEIGHT_ONLY])
def test_a_quantized_network_comes_back(scheme: Precision, folded: FoldResult, tmp_path: Path) -> None:
    data = [torch.randn(1, 3, 16, 16) for _ in range(4)] if scheme is Precision.INT8 else None
    pixels = Preprocessing(16, 16, mean=(0.5,) * 3, std=(0.25,) * 3) if data else None
    layers = ("het",) if data else ()
    first = quantize_model(
        folded, folded.program.example_inputs, calibration=data, scheme=scheme, exclude=layers, pixels=pixels, equalize=True
    )
    save_quantized(first, tmp_path / "net")
    found = load_quantized(tmp_path / "net", folded.plan)
    assert (found.float_layers, found.pixels, found.scheme) == (layers, first.pixels, scheme)
    assert found.equalized == first.equalized
    assert list(found.table.weights) == list(first.table.weights)
    assert found.table.activations == first.table.activations
    assert found.table.biases.keys() == first.table.biases.keys()
    assert found.table.rounded.keys() == first.table.rounded.keys()
    assert all(torch.equal(weight, first.table.rounded[name]) for name, weight in found.table.rounded.items())
    assert _sha256(found, tmp_path / "again.onnx") == _sha256(first, tmp_path / "first.onnx")


def test_damage_is_noticed(folded: FoldResult, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no network that can be read"):
        load_program(tmp_path / "none")
    save_program(folded.program, tmp_path / "net")
    record = json.loads((tmp_path / "net.json").read_text())
    call = next(node for node in record["nodes"] if node["target"].startswith("conv2d"))
    for key, value in (("target", "no_op.default"), ("target", "relu"), ("name", "other"), ("args", {"device": 1})):
        was, call[key] = call[key], value
        (tmp_path / "net.json").write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match="no network that can be read"):
            load_program(tmp_path / "net")
        call[key] = was
    (tmp_path / "net.json").write_text(json.dumps(record))
    (tmp_path / "net.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="no network that can be read"):
        load_program(tmp_path / "net")


def test_what_a_file_cannot_hold_is_said(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.ReLU())
    with pytest.raises(UnsupportedError, match="is not kept as a file"):
        save_program(Program(graph, (torch.zeros(1),), ("x",), ("y",)), tmp_path / "net")
