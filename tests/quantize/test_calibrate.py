import pytest
import torch
from torch import nn

from edgefold.errors import DataError
from edgefold.export.capture import capture
from edgefold.quantize.calibrate import attach, calibrate, without
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import Q


@pytest.fixture
def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 3, padding=1).eval()


def test_ranges_come_from_all_batches(conv: nn.Conv2d) -> None:
    graph = capture(conv, torch.zeros(1, 4, 4, 4)).graph
    table = calibrate(graph, [(torch.full((1, 4, 4, 4), value),) for value in (-1.0, 0.5, 3.0)])
    params = table.activations["input_1"]
    assert (params.qmin - params.zero_point) * params.scale == pytest.approx(-1, abs=params.scale)
    assert (params.qmax - params.zero_point) * params.scale == pytest.approx(3, abs=params.scale)
    assert table.samples == 3


def test_weights_have_one_scale_an_output_channel(conv: nn.Conv2d) -> None:
    table = calibrate(capture(conv, torch.zeros(1, 4, 4, 4)).graph, [(torch.randn(1, 4, 4, 4),)])
    weight = conv.weight.detach()
    largest = weight.abs().amax(dim=(1, 2, 3))
    # Neighbouring channels of one tap, like signs: pair-safe integers would sum to 128 at most.
    pairs = weight.permute(0, 2, 3, 1).reshape(4, 18, 2)
    sums = torch.maximum(pairs.clamp_min(0).sum(2).amax(1), -pairs.clamp_max(0).sum(2).amin(1))
    found = table.weights["conv2d"]
    # One conv alone: the whole network's loss is this layer's, and its range is worth more than 0.5 dB.
    torch.testing.assert_close(found, largest / 127)
    assert bool((sums > 1.2 * largest).any())


def test_depthwise_weights_use_all_of_int8() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4).eval()
    table = calibrate(capture(conv, torch.zeros(1, 4, 4, 4)).graph, [(torch.randn(1, 4, 4, 4),)])
    torch.testing.assert_close(table.weights["conv2d"], conv.weight.detach().abs().amax(dim=(1, 2, 3)) / 127)


def test_a_dead_channel_with_a_large_bias_stays_within_int32(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight[1] = 1e-12
        conv.bias[1] = 5.0
    graph = capture(conv, torch.zeros(1, 4, 4, 4)).graph
    sample = (torch.randn(1, 4, 4, 4),)
    table = calibrate(graph, [sample])
    assert 5.0 / (table.weights["conv2d"][1] * table.activations["input_1"].scale) < 2**31
    with torch.no_grad():
        output = insert_qdq(attach(graph, table), fold_weights=True)(*sample)[0]
        error = (output - graph(*sample)[0]).abs().max()
    assert float(error) < 2 * table.activations["conv2d"].scale


def test_branches_are_observed_beside_the_graph(conv: nn.Conv2d) -> None:
    graph = capture(conv, torch.zeros(1, 4, 4, 4)).graph
    mask = torch.zeros_like(conv.weight, dtype=torch.bool)
    mask[:2, :2], mask[2:, 2:] = True, True
    sample = torch.randn(1, 4, 4, 4)
    table = calibrate(graph, [(sample,)], branches=lambda weight, groups: {"group": (mask, True), "point": (~mask, False)})
    point = torch.conv2d(sample, conv.weight * ~mask, None, padding=1)
    params = table.branches["conv2d"]["point"]
    assert (params.qmax - params.zero_point) * params.scale == pytest.approx(float(point.detach().max()), abs=params.scale)
    group = torch.conv2d(sample, conv.weight * mask, conv.bias, padding=1)
    params = table.branches["conv2d"]["group"]
    assert (params.qmin - params.zero_point) * params.scale == pytest.approx(float(group.detach().min()), abs=params.scale)


def test_excluding_a_layer_keeps_the_other_scales() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).eval(), torch.zeros(1, 3, 4, 4)).graph
    table = calibrate(graph, [(torch.randn(1, 3, 4, 4),)])
    partial = without(table, graph, frozenset({"conv2d_1"}))
    assert set(partial.weights) == {"conv2d"}
    assert partial.activations == {name: table.activations[name] for name in ("input_1", "conv2d")}
    carried = {node.name for node in attach(graph, partial).graph.nodes if Q in node.meta}
    assert carried == {"input_1", "conv2d"}


def test_no_data_and_broken_data_are_refused(conv: nn.Conv2d) -> None:
    graph = capture(conv, torch.zeros(1, 4, 4, 4)).graph
    with pytest.raises(DataError, match="empty"):
        calibrate(graph, [])
    with pytest.raises(DataError, match="sample 1 holds NaN"):
        calibrate(graph, [(torch.zeros(1, 4, 4, 4),), (torch.full((1, 4, 4, 4), torch.nan),)])


class Swish(nn.Module):
    """Hard-swish whose gate is seldom far open, which observers other than minmax take for an outlier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x * (x / 6 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("observer", ["percentile", "mse", "entropy"])
def test_a_gate_keeps_its_whole_range(observer: str) -> None:
    net = Swish().eval()
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    x[..., 0, 0] *= 12
    graph = capture(net, x).graph
    (gate,) = (node for node in graph.graph.nodes if node.target is torch.ops.aten.clamp.default)
    params = calibrate(graph, [(x,)], observer=observer).activations[gate.name]
    with torch.no_grad():
        largest = float((net.first(x) / 6 + 0.5).clamp(0, 1).max())
    assert largest > 0.9
    assert params.scale * (params.qmax - params.zero_point) == pytest.approx(largest, abs=params.scale)
