"""Transposed convolutions as ordinary ones and a shuffle of pixels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.inspect import inspect, read
from edgefold.export.inspectors.base import Kind
from edgefold.export.lower.nodes import record_values
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.transposed_convs import Phases, transposed_convs_pass
from edgefold.export.program import QuantizedProgram
from edgefold.pipeline import export_model, quantize_model
from edgefold.quantize.graph import module_path
from edgefold.quantize.scheme import WEIGHT_SCALE, Q
from edgefold.runtime import run

_ATEN = torch.ops.aten
slow = pytest.mark.slow
TRANSPOSED = {_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input}
PIXELS = ["permute", "reshape", "permute", "reshape", "permute"]


def rewritten(module: nn.Module, x: Tensor, keep: frozenset[str] = frozenset()) -> tuple[Any, bool]:
    """The graph of a float64 module after the pass."""
    program = capture(module.eval().float(), x.float())
    graph = program.graph.double()
    add_values(graph, (x,))
    return run_passes(graph, (transposed_convs_pass(keep),))


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A transposed convolution of any geometry, and a shape that it takes."""
    rank = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    stride, kernel, padding, extra, size = ([] for _ in range(5))
    for _ in range(rank):
        stride.append(draw(st.integers(1, 4)))
        kernel.append(draw(st.integers(1, 6)))
        padding.append(draw(st.integers(0, 5)))
        extra.append(draw(st.integers(0, stride[-1] - 1)))
        least = max(1, -(-(2 * padding[-1] - kernel[-1] - extra[-1] + 1) // stride[-1]) + 1)
        size.append(least + draw(st.integers(0, 3)))
    kind: Any = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
    channels = draw(st.integers(1, 3)) * groups, draw(st.integers(1, 3)) * groups
    layer = kind(*channels, kernel, stride, padding, extra, groups, draw(st.booleans()))
    return layer, (draw(st.integers(1, 2)), channels[0], *size)


def graph_of(layer: Any, x: Tensor) -> GraphModule:
    """The graph of one transposed convolution; capture takes long."""
    owner = nn.ModuleDict({"layer": layer})
    graph = Graph()
    values = [graph.placeholder("x"), graph.get_attr("layer.weight")]
    values.append(graph.get_attr("layer.bias") if layer.bias is not None else None)  # type: ignore[arg-type]  # an argument
    target = _ATEN.conv_transpose1d.default if x.ndim == 3 else _ATEN.conv_transpose2d.input
    geometry = (list(layer.stride), list(layer.padding), list(layer.output_padding), layer.groups, list(layer.dilation))
    graph.output((graph.call_function(target, (*values, *geometry)),))
    module = GraphModule(owner, graph)
    record_values(module, (x,))
    return module


@given(layers())
def test_it_is_what_the_layer_computes_at_every_geometry(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, shape = case
    x = torch.randn(shape, dtype=torch.float64)
    graph, modified = run_passes(graph_of(layer.double(), x), (transposed_convs_pass(frozenset()),))
    assert modified
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert not TRANSPOSED & set(targets)
    assert sum(target in (_ATEN.conv1d.default, _ATEN.conv2d.default) for target in targets) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], layer(x), rtol=1e-12, atol=1e-12)
    # The shapes that the nodes have been given are the real ones.
    given_shapes = {node.name: tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.op == "call_function"}
    add_values(graph, (x,))
    assert given_shapes == {node.name: tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.op == "call_function"}


@given(*(st.integers(*bounds) for bounds in ((1, 9), (1, 9), (1, 5), (0, 8), (0, 4))))
def test_no_phase_has_more_taps_than_it_needs(size: int, kernel: int, stride: int, padding: int, extra: int) -> None:
    result = (size - 1) * stride - 2 * padding + kernel + min(extra, stride - 1)
    if result < 1:
        return
    phases = Phases.of(size, result, kernel, stride, padding)
    assert {len(taps) for taps in phases.taps} == {-(-kernel // stride)}
    assert sorted(tap for taps in phases.taps for tap in taps if tap >= 0) == list(range(kernel))
    assert min(phases.before, phases.after, phases.skipped) >= 0


@pytest.mark.parametrize(
    ("layer", "ops"),
    [
        (nn.ConvTranspose2d(4, 6, 2, 2), ["conv2d", *PIXELS]),
        (nn.ConvTranspose2d(4, 6, 4, 4, groups=2), ["conv2d", "reshape", "permute", "reshape"]),
        (nn.ConvTranspose2d(4, 6, 3, 1, 1), ["conv2d"]),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), ["constant_pad_nd", "conv2d", *PIXELS]),
        (nn.ConvTranspose2d(4, 6, 4, 2, 1), ["conv2d", *PIXELS, "slice", "slice"]),
    ],
    ids=["2x2 s2", "4x4 s4", "3x3 s1", "3x3 s2", "4x4 s2"],
)
def test_the_usual_layers_take_no_more_ops_than_they_need(layer: nn.Module, ops: list[str]) -> None:
    graph, _ = rewritten(layer, torch.randn(1, 4, 5, 5, dtype=torch.float64))
    found = [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]
    assert found == ops


def test_batch_norm_and_what_follows_go_before_the_shuffle() -> None:
    norm = nn.BatchNorm2d(6)
    layer = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), norm, nn.LeakyReLU(0.2), nn.Hardswish())
    for values in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert values is not None
        values.data.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    graph, _ = rewritten(layer, x)
    found = [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]
    assert found == ["conv2d", "leaky_relu", "hardswish", "reshape", "permute", "reshape", "slice", "slice"]
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], layer.double()(x), rtol=1e-12, atol=1e-12)


class ReadTwice(nn.Module):
    """A transposed convolution whose value is read before and after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x)
        return torch.relu(y) * 2 + y


def test_a_value_that_others_read_too_is_not_clipped() -> None:
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    module = ReadTwice()
    graph, _ = rewritten(module, x)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], module.double()(x), rtol=1e-12, atol=1e-12)


def test_dilated_layers_and_those_that_are_kept_stay() -> None:
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    _, modified = rewritten(nn.ConvTranspose2d(4, 4, 3, 2, dilation=2), x)
    assert not modified
    _, modified = rewritten(nn.ConvTranspose2d(4, 4, 3, 2), x, frozenset({"conv_transpose2d"}))
    assert not modified


@pytest.mark.parametrize(
    ("layer", "keep"),
    [
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2, dilation=2), ()),
        (nn.ConvTranspose2d(4, 6, 3, 2, bias=False), ("conv_transpose2d",)),
    ],
    ids=["dilated", "kept"],
)
def test_layers_that_stay_have_their_batch_norm_in_them(layer: nn.Module, keep: tuple[str, ...]) -> None:
    norm = nn.BatchNorm2d(6)
    for values in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert values is not None
        values.data.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    both = nn.Sequential(layer, norm)
    graph, modified = rewritten(both, x, frozenset(keep))
    assert modified
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [_ATEN.conv_transpose2d.input]
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], both.double()(x), rtol=1e-12, atol=1e-12)


class Decoder(nn.Module):
    """A step down and two up again, as of a U-Net, and a keypoint head's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.wide = nn.Sequential(nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.ConvTranspose2d(8, 4, 4, 2, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.cat([x, torch.relu(self.up(torch.relu(self.down(x))))], 1)
        z: Tensor = self.head(self.wide(y))
        return z


class Rows(nn.Module):
    """Of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv1d(3, 8, 3, padding=1), nn.ConvTranspose1d(8, 4, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.up(torch.relu(self.conv(x))))
        return y


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {"decoder": (Decoder, (3, 12, 12)), "rows": (Rows, (3, 16))}


def cases(*fast: tuple[str, Format]) -> list[Any]:
    """Each network in each format; slow but for some."""
    every = itertools.product(NETS, Format)
    return [pytest.param(*case, marks=() if case in fast else slow, id="-".join(case)) for case in every]


@pytest.fixture(scope="module")
def quantized(request: pytest.FixtureRequest) -> tuple[QuantizedProgram, Tensor]:
    kind, shape = NETS[request.param]
    torch.manual_seed(0)
    samples = torch.randn(4, *shape)
    return quantize_model(kind().eval(), samples[:1], calibration=list(torch.split(samples, 1)), observer="minmax"), samples


@pytest.mark.parametrize(
    ("quantized", "format"),
    cases(("decoder", Format.ONNX), ("rows", Format.TFLITE), ("decoder", Format.EXECUTORCH)),
    indirect=["quantized"],
)
def test_integers_throughout_and_the_references_own(
    quantized: tuple[QuantizedProgram, Tensor], format: Format, tmp_path: Path
) -> None:
    program, samples = quantized
    artifact = export_model(program, format=format, timing=False, out=tmp_path / f"net{format.suffix}")
    found = inspect(artifact.path)
    assert found.integer_mac_share == 1
    # ExecuTorch's delegate has no integer padding.
    floats = {op.name for op in read(artifact.path).ops if op.kind is Kind.FLOAT}
    assert floats <= ({"XNNStaticConstantPad"} if format is Format.EXECUTORCH else set())
    assert found.conversions_inside == 2 * len(floats)
    assert found.partitions in (None, 1)
    assert found.accelerated_share in (None, 1.0)
    (outputs,) = run(artifact, [samples.numpy()])
    reference = program.reference()
    with torch.no_grad():
        expected = torch.cat([reference(sample)[0] for sample in torch.split(samples, 1)]).numpy()
    step = next(node.meta[Q].scale for node in reversed(program.program.graph.graph.nodes) if Q in node.meta)
    difference = abs(outputs - expected) / step
    assert difference.max() < 2.01
    assert (difference > 0.5).mean() < 0.02


@pytest.mark.parametrize(("quantized", "format"), cases(("decoder", Format.ONNX)), indirect=["quantized"])
def test_any_batch(quantized: tuple[QuantizedProgram, Tensor], format: Format, tmp_path: Path) -> None:
    program, samples = quantized
    fixed, any_batch = (
        export_model(program, format=format, timing=False, dynamic_batch=dynamic, out=tmp_path / f"{dynamic}{format.suffix}")
        for dynamic in (False, True)
    )
    (expected,) = run(fixed, [samples.numpy()])
    for batch in (1, 4):
        (found,) = run(any_batch, [samples.numpy()], batch=batch)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("format", [Format.ONNX, *(pytest.param(one, marks=slow) for one in (Format.TFLITE, Format.EXECUTORCH))])
def test_a_file_without_any_float_op(format: Format, tmp_path: Path) -> None:
    samples = torch.randn(4, 3, 12, 12)
    program = quantize_model(Decoder().eval(), samples[:1], calibration=samples, scheme=Precision.INT8_FULL, observer="minmax")
    artifact = export_model(program, format=format, timing=False, out=tmp_path / f"net{format.suffix}")
    assert {op.kind for op in read(artifact.path).ops} == {Kind.INTEGER}


def test_an_excluded_layer_keeps_its_form() -> None:
    samples = torch.randn(2, 3, 12, 12)
    program = quantize_model(
        Decoder().eval(), samples[:1], calibration=list(torch.split(samples, 1)), observer="minmax", exclude=["wide.0"]
    ).program
    kept = [node for node in program.graph.graph.nodes if node.target in TRANSPOSED]
    assert [module_path(node) for node in kept] == ["wide.0"]
    assert WEIGHT_SCALE not in kept[0].meta
    assert {"up", "head"} <= {module_path(node) for node in program.graph.graph.nodes if node.target is _ATEN.conv2d.default}
