"""`int8-full`: nothing but integers from input to output, or one sentence that names what stands in the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Artifact, Format, Precision
from edgefold.errors import UnsupportedError
from edgefold.export.emitters import EmitOptions
from edgefold.export.inspect import read
from edgefold.export.inspectors.base import Kind
from edgefold.export.program import Program
from edgefold.quantize.insert import insert_qdq

slow = pytest.mark.slow


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize(("io", "dtype"), [("float32", np.int8), pytest.param("uint8", np.uint8, marks=slow)])
def test_file_is_integer_from_end_to_end_and_computes_what_the_graph_does(
    io: str,
    dtype: type[np.generic],
    format: Format,
    quantized_of: Callable[[str], Program],
    emitted: Callable[..., Artifact],
    run: Callable[..., dict[str, NDArray[Any]]],
) -> None:
    program = quantized_of("residual")
    artifact = emitted("residual", format, Precision.INT8_FULL, EmitOptions(io=io))  # type: ignore[arg-type]  # parametrized
    assert {op.kind for op in read(artifact.path).ops} == {Kind.INTEGER}
    (source,), (target,) = artifact.inputs, artifact.outputs
    assert source.scale
    assert target.scale
    assert source.zero_point is not None
    assert target.zero_point is not None
    limits = np.iinfo(source.dtype)
    integers = np.random.default_rng(0).integers(limits.min, limits.max + 1, source.shape, dtype=source.dtype)
    found = run(artifact.path, {source.name: integers})[target.name]
    assert found.dtype == integers.dtype == dtype
    real = (integers.astype(np.float32) - source.zero_point) * np.float32(source.scale)
    with torch.no_grad():
        (expected,) = insert_qdq(program.graph, fold_weights=True)(torch.from_numpy(real))
    steps = np.rint(expected.numpy() / np.float32(target.scale)) + target.zero_point
    assert np.abs(steps - found.astype(np.int32)).max() <= 1


class Awkward(nn.Module):
    """A convolution and an activation that no integer kernel has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.gate = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(self.stem(x))
        return y


@pytest.mark.parametrize("format", list(Format))
def test_float_op_is_named_with_its_module_and_no_file_is_left(format: Format, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    with pytest.raises(UnsupportedError, match=r"op 'aten\.gelu\.default' of module 'gate' has no integer form") as caught:
        edgefold.export_model(
            Awkward().eval(), x[:1], format=format, precision="int8-full", calibration=x, timing=False, out=tmp_path / "net"
        )
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_layer_left_in_float_is_named(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    program = edgefold.quantize_model(net, x[:1], calibration=x, scheme="int8-full", exclude=("0",))
    with pytest.raises(UnsupportedError, match="of module '0' has no integer form"):
        edgefold.export_model(program, format="onnx", out=tmp_path / "net")


def test_what_only_the_runtime_knows_to_be_float_is_named(
    quantized_of: Callable[[str], Program], emit: Callable[..., Artifact], tmp_path: Path
) -> None:
    """ONNX Runtime has no integer hard-swish; Edgefold's own quantization replaces it, this graph still has it."""
    with pytest.raises(UnsupportedError, match="is computed in float in this format, and 'int8-full' allows only integers"):
        emit(quantized_of("mobile"), Format.ONNX, tmp_path / "net.onnx", Precision.INT8_FULL)
    assert list(tmp_path.iterdir()) == []


class Dense(nn.Module):
    """A convolution's output is joined to its input, and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        z: Tensor = self.pool(torch.cat([y, torch.relu(self.second(y))], dim=1))
        return z


def test_what_follows_a_concat_in_onnx_is_integer_too(tmp_path: Path) -> None:
    """The first input of QLinearConcat is a float scale, of which its output is none."""
    x = torch.randn(4, 3, 10, 10)
    artifact = edgefold.export_model(
        Dense().eval(), x[:1], format="onnx", precision="int8-full", calibration=x, timing=False, out=tmp_path / "dense.onnx"
    )
    found = read(artifact.path).ops
    assert {op.kind for op in found} == {Kind.INTEGER}
    assert [op.name for op in found if op.name in ("QLinearConcat", "NhwcMaxPool")] == ["QLinearConcat", "NhwcMaxPool"]
