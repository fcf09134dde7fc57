"""Float files of all formats, run in their runtimes, against torch in float64."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgefold.artifact import Artifact, Format, sha256_of
from edgefold.errors import OutputError, UnsupportedError, UsageError
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.emitters.base import register_emitter
from edgefold.export.program import Program

Emit = Callable[..., Artifact]
Emitted = Callable[..., Artifact]
Run = Callable[..., dict[str, NDArray[Any]]]
MakeNet = Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]
FORMATS = list(Format)


def _reference(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[NDArray[np.float64]]:
    with torch.no_grad():
        outputs = module.double()(*(tensor.double() for tensor in inputs))
    module.float()
    values = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return [value.numpy() for value in values]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("residual", "nchw"),
        ("segment", "nhwc"),
        pytest.param("residual", "nhwc", marks=pytest.mark.slow),
        pytest.param("segment", "nchw", marks=pytest.mark.slow),
        pytest.param("mobile", "nchw", marks=pytest.mark.slow),
        pytest.param("mobile", "nhwc", marks=pytest.mark.slow),
    ],
)
def test_outputs_match_torch(
    name: str,
    format: Format,
    layout: str,
    program_of: Callable[[str], Program],
    make_net: MakeNet,
    emitted: Emitted,
    run: Run,
) -> None:
    module, _ = make_net(name)
    program = program_of(name)
    torch.manual_seed(1)
    inputs = tuple(torch.randn_like(tensor) for tensor in program.example_inputs)
    artifact = emitted(name, format, options=EmitOptions(layout=layout))  # type: ignore[arg-type]  # parametrized
    nhwc = layout == "nhwc"
    fed = {
        spec.name: (tensor.permute(0, 2, 3, 1).contiguous() if nhwc else tensor).numpy()
        for spec, tensor in zip(artifact.inputs, inputs, strict=True)
    }
    results = run(artifact.path, fed)
    assert [spec.name for spec in artifact.outputs] == list(program.output_names)
    for spec, expected in zip(artifact.outputs, _reference(module, inputs), strict=True):
        found = results[spec.name]
        assert found.shape == spec.shape
        assert spec.layout == (layout if expected.ndim == 4 else "torch")
        if nhwc and found.ndim == 4:
            found = found.transpose(0, 3, 1, 2)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("format", FORMATS)
def test_artifact_describes_the_file(format: Format, program_of: Callable[[str], Program], emit: Emit, tmp_path: Path) -> None:
    out = tmp_path / f"net{format.suffix}"
    artifact = emit(program_of("residual"), format, out)
    assert artifact.path == out
    assert artifact.sha256 == sha256_of(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    (source,) = artifact.inputs
    assert (source.name, source.shape, source.dtype, source.layout, source.scale) == (
        "x",
        (1, 3, 16, 16),
        "float32",
        "nchw",
        None,
    )
    data = out.read_bytes()
    assert b'"schema":"edgefold.artifact/1"' in data
    for noise in (b"serving_default_args", b"stack_trace", b"torch.nn.modules", b"/tests/"):
        assert noise not in data


def test_onnx_is_one_file_that_old_runtimes_read(emitted: Emitted) -> None:
    import onnx

    model = onnx.load(emitted("residual", Format.ONNX).path, load_external_data=False)
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert all(tensor.data_location == tensor.DEFAULT for tensor in model.graph.initializer)
    assert {"stem/Conv", "group/Conv", "point/Conv", "down/Conv", "head/Gemm"} <= {node.name for node in model.graph.node}
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["edgefold"])
    assert metadata["inputs"] == [{"name": "x", "shape": [1, 3, 16, 16], "dtype": "float32", "layout": "nchw"}]


def test_tflite_buffers_are_aligned_and_tensors_named_by_module(emitted: Emitted) -> None:
    from ai_edge_litert import schema_py_generated as schema

    data = emitted("residual", Format.TFLITE).path.read_bytes()
    model = schema.Model.GetRootAsModel(data, 0)
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if not buffer.DataIsNone():
            vector = buffer._tab.Vector(buffer._tab.Offset(4))
            assert vector % 16 == 0
    graph = model.Subgraphs(0)
    names = {graph.Tensors(index).Name().decode() for index in range(graph.TensorsLength())}
    assert {"x", "output", "stem", "group", "point", "down", "stem/const"} <= names


@pytest.mark.parametrize("format", FORMATS)
def test_unsupported_op_is_named_and_nothing_is_written(
    format: Format, emit: Emit, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.special.bessel_j0(x)
            return y

    program = capture(Bessel().eval(), torch.randn(1, 3))
    with pytest.raises(UnsupportedError, match=r"op '.*bessel_j0.*' has no form in"):
        emit(program, format, tmp_path / f"net{format.suffix}")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_existing_file_needs_force(program_of: Callable[[str], Program], emit: Emit, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        emit(program_of("residual"), Format.ONNX, out)
    assert out.read_text() == "mine"
    emit(program_of("residual"), Format.ONNX, out, options=EmitOptions(force=True))
    assert out.stat().st_size > 1000


def test_integer_ends_need_an_integer_precision(program_of: Callable[[str], Program], emit: Emit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--io int8 does not go with precision 'fp32'"):
        emit(program_of("residual"), Format.ONNX, tmp_path / "net.onnx", options=EmitOptions(io="int8"))


def test_options_name_the_nearest_valid_value() -> None:
    with pytest.raises(UsageError, match="unknown layout 'nhcw'; did you mean 'nhwc'"):
        EmitOptions(layout="nhcw")  # type: ignore[arg-type]  # that is the point


def test_a_format_has_one_emitter() -> None:
    assert get_emitter(Format.ONNX).format is Format.ONNX
    with pytest.raises(UsageError, match="has an emitter already"):
        register_emitter(Format.ONNX, lambda: get_emitter(Format.ONNX))
