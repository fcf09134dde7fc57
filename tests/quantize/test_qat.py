import pytest
import torch
from torch import nn

from edgefold.errors import UsageError
from edgefold.export.capture import capture
from edgefold.quantize.calibrate import ScaleTable, attach, calibrate
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.qat import load_weights, prepare_qat, trained_weights
from edgefold.quantize.scheme import QParams


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        conv = net[2]
        assert isinstance(conv, nn.Conv2d)
        conv.weight[:, ::2, 0, 0] = 0
        conv.weight *= 4
    return net.eval()


def _batch(seed: int, size: int = 32) -> torch.Tensor:
    return torch.randn(size, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_before_training_it_computes_what_the_int8_graph_does() -> None:
    graph = capture(_net(), _batch(0)).graph
    table = calibrate(graph, [(_batch(0),)], observer="minmax")
    with torch.no_grad():
        prepared = prepare_qat(graph, table)(_batch(1))[0]
        reference = insert_qdq(attach(graph, table), fold_weights=True)(_batch(1))[0]
    steps = (prepared - reference).abs() / table.activations["linear"].scale
    # Only the reference rounds biases, which moves a value by one step now and then.
    assert float(steps.max()) < 1.01
    assert float((steps > 0.5).float().mean()) < 0.05


def test_training_lowers_the_loss_of_int8_and_keeps_zeros() -> None:
    net = _net()
    graph, single = (capture(net, _batch(0, size)).graph for size in (32, 1))
    samples = [(sample[None],) for sample in _batch(0)]
    # A table that clips: training has something to repair.
    table = calibrate(single, samples, observer="minmax")
    narrow = {name: QParams(p.scale / 3, p.zero_point) if name == "relu" else p for name, p in table.activations.items()}
    table = ScaleTable(narrow, table.weights)
    prepared = prepare_qat(graph, table)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=2e-3)
    for step in range(60):
        optimizer.zero_grad()
        with torch.no_grad():
            target = net(_batch(step))
        (prepared(_batch(step))[0] - target).square().mean().backward()
        optimizer.step()
    trained = load_weights(single, trained_weights(prepared, single))
    again = ScaleTable(narrow, calibrate(trained, samples, observer="minmax").weights)

    def loss(candidate: torch.fx.GraphModule, scales: ScaleTable) -> float:
        reference = insert_qdq(attach(candidate, scales), fold_weights=True)
        with torch.no_grad():
            return float(torch.stack([(reference(x)[0] - net(x)).square().mean() for x in torch.chunk(_batch(1000), 32)]).mean())

    assert loss(trained, again) < 0.7 * loss(single, table)
    weight = trained.get_parameter("2.weight")
    assert bool((weight[:, ::2, 0, 0] == 0).all())
    assert float(weight[:, 1::2].detach().abs().min()) > 0


def test_a_table_of_another_network_is_refused() -> None:
    graph = capture(_net(), _batch(0)).graph
    with pytest.raises(UsageError, match="calibrate this network"):
        prepare_qat(graph, ScaleTable({}, {}))
