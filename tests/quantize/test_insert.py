"""The fake-quantized graph against integer arithmetic done by hand in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgefold.export.capture import capture
from edgefold.quantize.calibrate import ScaleTable, attach, calibrate
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import WEIGHT_SCALE, Q, QParams

Ints = NDArray[np.int64]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


def _to_integers(x: NDArray[np.float64], p: QParams) -> Ints:
    return np.clip(np.rint(x / p.scale) + p.zero_point, p.qmin, p.qmax).astype(np.int64)


def _conv(
    x: Ints, weight: NDArray[np.float64], bias: NDArray[np.float64], scale: NDArray[np.float64], i: QParams, pad: int
) -> NDArray[np.float64]:
    """An integer conv, stride 1: int32 accumulation of (x - zero point) * w plus an int32 bias; the real value of it."""
    w = np.clip(np.rint(weight / scale[:, None, None, None]), -127, 127).astype(np.int64)
    b = np.rint(bias / (scale * i.scale)).astype(np.int64)
    centred = np.pad(x - i.zero_point, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(centred, w.shape[2:], axis=(2, 3))
    total = np.einsum("bmhwij,nmij->bnhw", windows, w) + b[None, :, None, None]
    return total * (scale * i.scale)[None, :, None, None]


def _double(tensor: torch.Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None
    return tensor.detach().double().numpy()


def _by_hand(net: Residual, table: ScaleTable, x: torch.Tensor) -> NDArray[Any]:
    a = table.activations
    x_int = _to_integers(_double(x), a["x"])
    hidden = _conv(x_int, _double(net.conv1.weight), _double(net.conv1.bias), _double(table.weights["conv2d"]), a["x"], 1)
    relu = _to_integers(np.maximum(hidden, 0), a["relu"])
    second = _conv(relu, _double(net.conv2.weight), _double(net.conv2.bias), _double(table.weights["conv2d_1"]), a["relu"], 0)
    branch = _to_integers(second, a["conv2d_1"])
    total = (x_int - a["x"].zero_point) * a["x"].scale + (branch - a["conv2d_1"].zero_point) * a["conv2d_1"].scale
    return (_to_integers(total, a["add"]) - a["add"].zero_point) * a["add"].scale


@pytest.fixture(scope="module")
def net() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.mark.parametrize("fold_weights", [True, False])
def test_equals_integer_arithmetic(net: Residual, fold_weights: bool) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    samples = [(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)),) for i in range(20)]
    table = calibrate(program.graph, samples)
    graph = insert_qdq(attach(program.graph, table), fold_weights=fold_weights)
    outputs = np.concatenate([graph(*sample)[0].detach().numpy() for sample in samples])
    expected = np.concatenate([_by_hand(net, table, *sample) for sample in samples])
    steps = np.abs(outputs - expected) / table.activations["add"].scale
    # float32 sums land on the other side of a tie now and then; a wrong rule would be off everywhere.
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 1e-3


def test_every_consumer_has_a_dequantize_node_of_its_own(net: Residual) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    table = calibrate(program.graph, [(torch.randn(1, 3, 8, 8),)])
    graph = insert_qdq(attach(program.graph, table), fold_weights=True)
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    found = graph.graph.find_nodes(op="call_function", target=dequantize)
    # x is read twice; relu, conv2d_1 and add once each.
    assert [len(node.users) for node in found] == [1] * 5


def test_a_graph_without_parameters_is_left_alone(net: Residual) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(insert_qdq(program.graph, fold_weights=True)(x)[0], program.graph(x)[0])


def test_the_input_graph_is_not_changed(net: Residual) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    before = program.graph.code
    table = calibrate(program.graph, [(torch.randn(1, 3, 8, 8),)])
    insert_qdq(attach(program.graph, table), fold_weights=True)
    assert program.graph.code == before
    assert not any(Q in node.meta for node in program.graph.graph.nodes)


def test_float_weights_are_gone_once_they_are_integers(net: Residual) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    table = calibrate(program.graph, [(torch.randn(1, 3, 8, 8),)])
    graph = insert_qdq(attach(program.graph, table), fold_weights=True)
    kept = {name for name, value in graph.state_dict().items() if value.ndim == 4 and value.is_floating_point()}
    assert kept == set()


def test_float_weights_give_the_same_integers_however_a_converter_divides(net: Residual) -> None:
    program = capture(net, torch.zeros(1, 3, 8, 8))
    table = calibrate(program.graph, [(torch.randn(1, 3, 8, 8),)])
    attached = attach(program.graph, table)
    node = attached.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[0]
    scale = node.meta[WEIGHT_SCALE].reshape(-1, 1, 1, 1)
    # Half-way between two integers, where the last bit of a quotient decides.
    weight = (torch.arange(162).reshape(6, 3, 3, 3) - 80.5) * scale
    with torch.no_grad():
        attached.get_parameter(node.args[1].target).copy_(weight)
    integers = insert_qdq(attached, fold_weights=True).get_buffer("conv2d_weight_int8").double()
    on_grid = insert_qdq(attached, fold_weights=False).get_buffer("conv2d_weight_on_grid")
    assert len({int(value) for value in integers.flatten()}) > 50
    for quotient in (on_grid / scale, on_grid * (1 / scale), on_grid.double() / scale.double()):
        assert torch.equal(torch.round(quotient).double(), integers)
