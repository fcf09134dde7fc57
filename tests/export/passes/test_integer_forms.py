"""Hard-swish, hard-sigmoid and swish in integer ops, and clips that saturation makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgefold.artifact import Format
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.inspect import inspect
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.integer_activations import INTEGER_ACTIVATIONS
from edgefold.export.passes.saturation import SATURATION
from edgefold.pipeline import export_model, quantize_model
from edgefold.quantize.annotate import annotate
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import INT16
from edgefold.runtime import run

_ATEN = torch.ops.aten


class Around(nn.Module):
    """A function between a conv and a linear."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Linear(8, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.function(4 * self.conv(x)).mean((2, 3)))
        return y


class Gated(nn.Module):
    """A squeeze-and-excitation block as of MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.reduce, self.expand = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.conv(x))
        gate = functional.hardsigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        y: Tensor = functional.hardswish(self.last(x * gate + x))
        return y


@pytest.mark.parametrize(
    "function",
    [functional.hardswish, functional.hardsigmoid, lambda x: functional.hardswish(torch.tanh(x) * 5), functional.silu],
    ids=["hard-swish", "hard-sigmoid", "hard-swish alone", "swish"],
)
def test_the_rewrite_computes_the_same(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)

    class Direct(Around):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(self.function(self.conv(x)).mean((2, 3)))
            return y

    module, x = Direct(function).eval(), torch.randn(2, 3, 6, 6) * 8
    program = capture(module, x)
    add_values(program.graph, program.example_inputs)
    graph, modified = run_passes(program.graph, (INTEGER_ACTIVATIONS,))
    assert modified
    assert not {_ATEN.hardswish.default, _ATEN.hardsigmoid.default, _ATEN.silu.default} & {
        node.target for node in graph.graph.nodes
    }
    torch.testing.assert_close(graph(x)[0].double(), module.double()(x.double()), rtol=1e-5, atol=1e-5)


def test_a_hard_sigmoid_that_is_no_layers_own_stays() -> None:
    program = capture(Around(functional.hardsigmoid).eval(), torch.randn(1, 3, 6, 6))
    add_values(program.graph, program.example_inputs)
    graph, modified = run_passes(program.graph, (INTEGER_ACTIVATIONS,))
    assert not modified
    assert _ATEN.hardsigmoid.default in {node.target for node in graph.graph.nodes}


def test_every_value_is_quantized_the_constants_included() -> None:
    torch.manual_seed(0)
    program = capture(Gated().eval(), torch.randn(1, 4, 8, 8))
    add_values(program.graph, program.example_inputs)
    graph, _ = run_passes(program.graph, (INTEGER_ACTIVATIONS,))
    annotation = annotate(graph)
    assert len(annotation.constants) == 2
    table = calibrate(graph, [(torch.randn(1, 4, 8, 8),) for _ in range(3)], observer="minmax")
    assert set(annotation.constants) <= set(table.activations)
    for fold_weights in (True, False):
        inserted = insert_qdq(attach(graph, table), fold_weights=fold_weights)
        dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
        for node in inserted.graph.nodes:
            if node.target in (_ATEN.add.Tensor, _ATEN.mul.Tensor):
                assert [source.target for source in node.all_input_nodes] == [dequantize] * 2
    # A number is exact on its own grid.
    for node in graph.graph.nodes:
        if node.name in annotation.constants:
            params = table.activations[node.name]
            assert params.scale * 64 == pytest.approx(abs(float(getattr(graph, str(node.target)))))


def test_clips_go_where_saturation_makes_them_and_stay_elsewhere() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Hardtanh(-0.1, 0.1)).eval()
    program = capture(module, torch.randn(1, 3, 6, 6))
    add_values(program.graph, program.example_inputs)
    batches = [(torch.randn(1, 3, 6, 6) * 4,) for _ in range(3)]
    attached = attach(program.graph, calibrate(program.graph, batches, observer="minmax"))
    graph, modified = run_passes(attached, (SATURATION,))
    assert modified
    assert _ATEN.relu.default not in {node.target for node in graph.graph.nodes}
    before, after = (insert_qdq(one, fold_weights=True) for one in (attached, graph))
    for batch in batches:
        torch.testing.assert_close(after(*batch), before(*batch), rtol=0, atol=0)
    # A range that is wider than the clip: the clip is needed.
    from edgefold.quantize.scheme import Q, QParams

    for node in attached.graph.nodes:
        if node.target is _ATEN.relu.default:
            node.meta[Q] = QParams(0.05, 0)
    graph, _ = run_passes(attached, (SATURATION,))
    assert _ATEN.relu.default in {node.target for node in graph.graph.nodes}


def test_a_clip_at_the_end_of_signed_integers_is_a_relu() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.Hardtanh(0.0, 0.2)).eval()
    program = capture(module, torch.randn(1, 3, 6, 6))
    batches = [(torch.randn(1, 3, 6, 6) * 4,) for _ in range(3)]
    attached = attach(program.graph, calibrate(program.graph, batches, observer="minmax", grid=INT16))
    graph, modified = run_passes(attached, (SATURATION,))
    assert modified
    assert sum(node.target is _ATEN.relu.default for node in graph.graph.nodes) == 2
    before, after = (insert_qdq(one, fold_weights=True) for one in (attached, graph))
    for batch in batches:
        torch.testing.assert_close(after(*batch), before(*batch), rtol=0, atol=0)


@pytest.mark.parametrize("format", list(Format))
def test_a_mobile_block_is_integer_throughout_and_matches_the_reference(format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = torch.randn(6, 4, 16, 16) * 2
    singles = [samples[position : position + 1] for position in range(6)]
    program = quantize_model(Gated().eval(), samples[:1], calibration=singles)
    agree = format is Format.EXECUTORCH  # it looks hard-swish up in a table otherwise
    artifact = export_model(program, format=format, agree=agree, timing=False, out=tmp_path / f"block{format.suffix}")
    found = inspect(artifact.path)
    assert (found.float_ops, found.conversions_inside, found.integer_mac_share) == (0, 0, 1.0)
    assert found.partitions in (None, 1)
    assert found.accelerated_share in (None, 1.0)
    (outputs,) = run(artifact, [samples.numpy()])
    reference = program.reference()
    with torch.no_grad():
        expected = torch.cat([reference(sample)[0] for sample in singles]).numpy()
    step = next(
        node.meta["edgefold_q"].scale for node in reversed(program.program.graph.graph.nodes) if "edgefold_q" in node.meta
    )
    difference = abs(outputs - expected) / step
    assert difference.max() < 2.01
    assert (difference > 0.5).mean() < 0.02


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE])
def test_swish_is_integer_where_the_runtime_has_a_table_for_the_sigmoid(format: Format, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU()).eval()
    images = torch.randn(4, 4, 16, 16) * 2
    artifact = export_model(
        net, images[:1], format=format, precision="int8", calibration=images, out=tmp_path / f"net{format.suffix}"
    )
    found = inspect(artifact.path)
    assert (found.float_ops, found.conversions_inside, found.integer_mac_share) == (0, 0, 1.0)
    (outputs,) = run(artifact, [images.numpy()])
    with torch.no_grad():
        expected = net.double()(images.double()).numpy()
    error = 10 * np.log10((expected**2).sum() / ((outputs - expected) ** 2).sum())
    assert error > 30  # dB


class ClippedProduct(nn.Module):
    """A gate before a ReLU6, as of ReXNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y: Tensor = self.last(functional.relu6(x * functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))))
        return y


def test_a_clip_after_a_product_is_part_of_it(tmp_path: Path) -> None:
    """With a grid before and one after it, ONNX Runtime may merge the two and leave the next convolution in float."""
    torch.manual_seed(0)
    images = torch.randn(4, 4, 16, 16) * 4
    net = ClippedProduct().eval()
    artifact = export_model(net, images[:1], format="onnx", precision="int8", calibration=images, out=tmp_path / "net.onnx")
    nodes = onnx.load(artifact.path).graph.node
    producers = {name: node.op_type for node in nodes for name in node.output}
    assert not [
        node.name for node in nodes if node.op_type == "QuantizeLinear" and producers.get(node.input[0]) == "DequantizeLinear"
    ]
    found = inspect(artifact.path)
    assert (found.float_ops, found.conversions_inside, found.integer_mac_share) == (0, 0, 1.0)
    (outputs,) = run(artifact, [images.numpy()])
    with torch.no_grad():
        expected = net.double()(images.double()).numpy()
    assert 10 * np.log10((expected**2).sum() / ((outputs - expected) ** 2).sum()) > 30  # dB
