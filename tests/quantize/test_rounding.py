"""Rounding by data: its H against real convolutions, what it must keep, and what a network gains."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.export.capture import capture
from edgefold.models.blocks import HetConv2d
from edgefold.pipeline import fold
from edgefold.quantize import rounding
from edgefold.quantize.calibrate import ScaleTable, annotated, attach, calibrate, output_sqnr_db
from edgefold.quantize.graph import constant_of
from edgefold.quantize.insert import insert_qdq, quantize_weight
from edgefold.quantize.pairs import is_pair_safe
from edgefold.quantize.rounding import _cost, _covariance, _partners, _round, _vectors_of, round_by_data
from edgefold.quantize.scheme import WEIGHT_SCALE

GEOMETRY: dict[str, st.SearchStrategy[Any]] = {
    "dimensions": st.sampled_from([1, 2]),
    "kernel": st.integers(1, 3),
    "stride": st.integers(1, 2),
    "padding": st.integers(0, 2),
    "dilation": st.integers(1, 2),
    "groups": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 2**16),
}


def check(dimensions: int, kernel: int, stride: int, padding: int, dilation: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = nn.Conv1d if dimensions == 1 else nn.Conv2d
    conv = kind(4, 8, kernel, stride, padding, dilation, groups).eval()
    inputs = [torch.randn(2, 4, *([9] * dimensions), generator=generator) for _ in range(3)]
    graph = capture(conv, inputs[0]).graph
    node = next(node for node in graph.graph.nodes if node.op == "call_function")
    error = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
    columns = error.reshape(groups, 8 // groups, -1)
    node.meta[WEIGHT_SCALE] = torch.ones(8)
    with patch.object(rounding, "_VECTORS_A_WEIGHT", 10**6):  # all positions are looked at
        found = _cost(columns, node, conv.weight.detach(), inputs)
        moments = _covariance(node, conv.weight.detach(), inputs)
    function = nn.functional.conv1d if dimensions == 1 else nn.functional.conv2d
    added = [function(x.double(), error, None, stride, padding, dilation, groups) for x in inputs]
    expected = torch.cat(added).transpose(0, 1).flatten(1).var(1, correction=0)  # the bias takes the mean
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(((columns @ moments) * columns).sum(2), found, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=12)
@given(**GEOMETRY)
def test_the_cost_is_the_mean_square_of_what_the_layer_adds(**geometry: Any) -> None:
    check(**geometry)


@pytest.mark.slow
@settings(deadline=None, max_examples=160)
@given(**GEOMETRY)
def test_the_cost_is_the_mean_square_of_what_the_layer_adds_in_more_cases(**geometry: Any) -> None:
    check(**geometry)


@pytest.mark.parametrize(("shape", "stride"), [((1, 4, 40, 40), 1), ((1, 4, 3, 200), 2), ((1, 4, 50), 1)])
def test_positions_are_thinned_out_to_about_as_many_as_needed(shape: tuple[int, ...], stride: int) -> None:
    conv = (nn.Conv1d if len(shape) == 3 else nn.Conv2d)(4, 2, 1, stride).eval()
    x = torch.randn(shape)
    node = next(node for node in capture(conv, x).graph.graph.nodes if node.op == "call_function")
    found = _vectors_of(node, tuple(conv.weight.shape[2:]), x, 16)
    assert 16 <= found.shape[1] <= 64
    places = x.flatten(2)[0].T  # (positions, channels)
    assert all(bool((vector == places).all(1).any()) for vector in found.T)


def test_a_linear_layer_costs_as_its_products_do() -> None:
    inputs = [torch.randn(1, 5, 7) for _ in range(4)]
    graph = capture(nn.Linear(7, 3, bias=False).eval(), inputs[0]).graph
    node = next(node for node in graph.graph.nodes if node.op == "call_function")
    error = torch.randn(1, 3, 7, dtype=torch.float64)
    expected = (torch.cat(inputs).double() @ error[0].T).square().mean((0, 1))
    found = _cost(error, node, torch.zeros(3, 7), inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@settings(deadline=None, max_examples=30)
@given(columns=st.integers(1, 150), outputs=st.integers(1, 6), groups=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_correlated_inputs_are_rounded_at_a_lower_cost(columns: int, outputs: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(groups, columns, 4 * columns, generator=generator, dtype=torch.float64).cumsum(1)
    moments = vectors @ vectors.transpose(1, 2)
    exact = torch.randn(groups, outputs, columns, generator=generator, dtype=torch.float64) * 30
    exact[:, :, ::3] = 0
    rounded = _round(exact.clone(), moments, None)
    assert rounded is not None
    assert torch.equal(rounded, rounded.round())
    assert bool((rounded.abs() <= 127).all())
    assert bool((rounded[exact == 0] == 0).all())
    costs = [float(((exact - each) @ moments * (exact - each)).sum()) for each in (rounded, exact.round())]
    assert costs[0] <= 1.01 * costs[1]


@pytest.mark.parametrize(("channels", "taps"), [(4, 9), (3, 9), (6, 1), (5, 1), (2, 3)])
def test_partners_are_neighbours_in_the_order_of_the_kernel(channels: int, taps: int) -> None:
    order = [(channel, tap) for tap in range(taps) for channel in range(channels)]
    expected = {}
    for first, second in zip(order[::2], order[1::2], strict=False):
        expected[first], expected[second] = second, first
    for column, partner in enumerate(_partners(channels, taps).tolist()):
        here, there = divmod(column, taps), divmod(partner, taps)
        assert expected.get(here, here) == there


def test_sums_of_pairs_stay_where_they_cannot_saturate() -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.rand(16, 2, 9, generator=generator, dtype=torch.float64) * 127
    exact = torch.stack([part, 127 - part], dim=2).reshape(1, 16, 36)  # each pair of channels is at its limit
    mixed = torch.randn(1, 36, 4, generator=generator, dtype=torch.float64)  # what four numbers make of 36 inputs
    moments = mixed @ mixed.transpose(1, 2)
    shape = (16, 4, 3, 3)
    free, bound = (_round(exact.clone(), moments, partner) for partner in (None, _partners(4, 9)))
    assert free is not None
    assert bound is not None
    assert not is_pair_safe(free.reshape(shape))
    assert is_pair_safe(bound.reshape(shape))


def test_numbers_too_large_for_an_inverse_keep_the_nearest_integers() -> None:
    moments = torch.full((1, 4, 4), float("inf"), dtype=torch.float64)
    assert _round(torch.ones(1, 2, 4, dtype=torch.float64), moments, None) is None


class Odd(nn.Module):
    """Layers that take no batch, share a weight, or read three dimensions; each sees the same four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.row, self.line = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv1d(4, 4, 3, 1, 1), nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.conv(x)))  # two layers of one weight
        y = self.row(x.flatten(2))  # (1, 4, positions)
        z = self.row(x.flatten(2).squeeze(0)).unsqueeze(0)  # without a batch
        tokens = self.line(torch.relu(y + z).transpose(1, 2))  # (1, positions, 4)
        result: Tensor = self.last(tokens.mean((0, 1)))  # a vector
        return result


def test_layers_without_a_batch_and_of_shared_weights_keep_the_nearest_integers() -> None:
    torch.manual_seed(0)
    samples = [(torch.randn(1, 4, 6, 6),) for _ in range(8)]
    graph = capture(Odd().eval(), samples[0][0]).graph
    table = calibrate(graph, samples, observer="minmax")
    rounded = round_by_data(graph, table, samples)
    assert len(table.weights) == 6
    assert len(rounded.rounded) <= 1  # the linear layer over tokens
    exact = {node.name: constant_of(graph, node.args[2]) for node in graph.graph.nodes if node.name in rounded.biases}
    assert all(bias.shape == exact[name].shape for name, bias in rounded.biases.items())


def test_weights_that_round_to_zero_are_no_zeros_of_the_structure() -> None:
    samples = _smooth(16, 1)
    net = _network()
    with torch.no_grad():
        net[0].weight[:, 0] *= 1e-4  # type: ignore[index, operator]  # a conv; far below a step of its scale
    graph = fold(net, samples[0]).program.graph
    table = round_by_data(graph, calibrate(graph, samples, observer="minmax"), samples)
    attached = attach(graph, table)
    nodes = {node.name: node for node in attached.graph.nodes}
    vanished = 0
    for node in graph.graph.nodes:
        if node.name in table.rounded:
            before, after = (constant_of(each, one.args[1]) for each, one in ((graph, node), (attached, nodes[node.name])))
            assert torch.equal(before == 0, after == 0)
            vanished += int(((table.rounded[node.name] == 0) & (before != 0)).sum())
    assert vanished > 16


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.ReLU(),
        HetConv2d(16, 16, 3, padding=1, p=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


def _smooth(count: int, seed: int) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 1, 3, 6, 6, generator=generator)
    return [(nn.functional.interpolate(each, size=(24, 24), mode="bilinear"),) for each in small]


def test_a_network_gains_on_images_that_it_was_not_rounded_for() -> None:
    samples, fresh = _smooth(16, 1), _smooth(16, 2)
    graph = fold(_network(), samples[0]).program.graph
    table = calibrate(graph, samples, observer="minmax")
    rounded = round_by_data(graph, table, samples)

    def sqnr_db(each: ScaleTable) -> float:
        reference = insert_qdq(attach(graph, each), fold_weights=True)
        with torch.no_grad():
            y, q = (torch.cat([net(*sample)[0] for sample in fresh]).double() for net in (graph, reference))
        return float(10 * torch.log10(y.square().sum() / (y - q).square().sum()))

    assert sqnr_db(rounded) > sqnr_db(table) + 1
    assert output_sqnr_db(annotated(graph, rounded), fresh) == pytest.approx(sqnr_db(rounded), abs=1e-6)


def test_integers_are_what_files_get_and_zeros_stay() -> None:
    samples = _smooth(8, 1)
    graph = fold(_network(), samples[0]).program.graph
    table = round_by_data(graph, calibrate(graph, samples, observer="minmax"), samples)
    attached = attach(graph, table)
    nodes = {node.name: node for node in attached.graph.nodes}
    floats = {node.name: constant_of(graph, node.args[1]) for node in graph.graph.nodes if node.name in table.rounded}
    assert len(floats) == 4
    moved = 0
    for name, weight in floats.items():
        written = quantize_weight(constant_of(attached, nodes[name].args[1]), nodes[name].meta[WEIGHT_SCALE])
        assert torch.equal(written, table.rounded[name])
        assert bool((written[weight == 0] == 0).all())
        moved += int((written != quantize_weight(weight, nodes[name].meta[WEIGHT_SCALE])).sum())
        if weight.shape[1] > 1 and name not in table.full_range:
            assert is_pair_safe(written)
    assert moved > 0
    assert any(float((weight == 0).double().mean()) > 0.5 for weight in floats.values())  # the one of HetConv
