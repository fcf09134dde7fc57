from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgefold.errors import CheckError
from edgefold.export.capture import capture
from edgefold.quantize.calibrate import ScaleTable, annotated, attach, calibrate, output_sqnr_db
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.mixed import choose
from edgefold.quantize.sensitivity import analyse

Samples = list[tuple[torch.Tensor, ...]]


def _net(bad: tuple[int, ...] = ()) -> tuple[GraphModule, ScaleTable, Samples]:
    """Six convs in a row; in the bad ones a weight of each filter is an outlier that the next layer does not see."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(6):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        if index in bad:
            with torch.no_grad():
                conv.weight[:, 7, 1, 1] = 60.0  # channel 7 is always zero: the outlier costs only integers
        assert conv.bias is not None
        with torch.no_grad():
            conv.weight[7], conv.bias[7] = (0.0, 0.0)
            conv.weight[:7] *= 2
        layers += [conv, nn.ReLU()]
    graph = capture(nn.Sequential(*layers).eval(), torch.zeros(1, 8, 8, 8)).graph
    samples: Samples = []
    for _ in range(6):
        x = torch.randn(1, 8, 8, 8)
        x[:, 7] = 0
        samples.append((x,))
    return graph, calibrate(graph, samples, observer="minmax"), samples


def test_the_paired_walk_equals_the_inserted_graph() -> None:
    graph, table, samples = _net()
    reference = insert_qdq(attach(graph, table), fold_weights=True)
    with torch.no_grad():
        y = torch.cat([graph(*sample)[0] for sample in samples]).double()
        q = torch.cat([reference(*sample)[0] for sample in samples]).double()
    expected = float(10 * torch.log10(y.square().sum() / (y - q).square().sum()))
    assert output_sqnr_db(annotated(graph, table), samples) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [(2,), (1, 4), (0, 3, 5)])
def test_layers_made_bad_on_purpose_are_named_first(bad: tuple[int, ...]) -> None:
    graph, table, samples = _net(bad)
    report = analyse(graph, table, samples)
    assert {layer.name for layer in report.layers[: len(bad)]} == {str(2 * index) for index in bad}


def test_the_first_layer_to_exclude_gains_most() -> None:
    graph, table, samples = _net((2,))
    report = analyse(graph, table, samples)
    assert report.layers[0].gain_db == max(layer.gain_db for layer in report.layers)
    assert report.layers[0].gain_db > 3


def test_mixed_precision_moves_only_the_layers_that_must() -> None:
    graph, table, samples = _net((1, 4))
    report = analyse(graph, table, samples)
    with torch.no_grad():
        exact = torch.cat([graph(*sample)[0] for sample in samples])

    def evaluate(candidate: GraphModule) -> float:
        with torch.no_grad():
            outputs = torch.cat([candidate(*sample)[0] for sample in samples])
        return 1 - float((outputs - exact).norm() / exact.norm())

    clean, clean_table, _ = _net()
    tolerated = 100 * (1 - _relative(clean, clean_table, samples)) * 1.5
    mixed = choose(graph, table, report, evaluate, max_drop=tolerated)
    assert len(mixed.float_layers) == 2
    assert set(mixed.float_layers) == {layer.node for layer in report.layers[:2]}
    assert mixed.before < mixed.after <= mixed.reference
    with pytest.raises(CheckError, match="every layer in float"):
        choose(graph, table, report, lambda g: float(g is graph), max_drop=1)


def test_layers_that_do_not_fit_into_the_time_stay_in_int8() -> None:
    graph, table, samples = _net((1, 4))
    report = analyse(graph, table, samples)
    dear = report.layers[1].node
    calls: list[frozenset[str]] = []

    def fits(names: frozenset[str], table: Callable[[], ScaleTable]) -> bool:
        calls.append(names)
        return dear not in names

    def evaluate(candidate: GraphModule) -> float:
        with torch.no_grad():
            exact = torch.cat([graph(*sample)[0] for sample in samples])
            outputs = torch.cat([candidate(*sample)[0] for sample in samples])
        return 1 - float((outputs - exact).norm() / exact.norm())

    near = choose(graph, table, report, evaluate, max_drop=None, fits=fits)
    assert dear not in near.float_layers
    assert near.before < near.after < near.reference
    assert any(dear in names for names in calls)
    assert not near.float_layers or frozenset(near.float_layers) in calls
    with pytest.raises(CheckError, match="every layer that --max-ms allows"):
        choose(graph, table, report, evaluate, max_drop=0.0, fits=fits)


def _relative(graph: GraphModule, table: ScaleTable, samples: Samples) -> float:
    return 1 - 10 ** (-output_sqnr_db(annotated(graph, table), samples) / 20)
