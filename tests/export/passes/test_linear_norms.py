"""BatchNorms after linear layers: in their weights, and so in every integer file."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.export.verify import reference_outputs


def _net(features: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(features)
    norm.running_mean, norm.running_var = torch.randn(features), torch.rand(features) + 0.5
    nn.init.uniform_(norm.weight, 0.5, 2)
    return nn.Sequential(nn.Linear(8, 6, bias=False), norm, nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize(("features", "shape"), [(6, (8,)), (5, (5, 8))])
def test_networks_with_them_fold_and_are_quantized(features: int, shape: tuple[int, ...]) -> None:
    """Calibration ended with an internal error at the value that PT2E had taken away."""
    net, x = _net(features), torch.randn(32, *shape)
    folded = edgefold.fold(net, x[:1])
    names = [str(node.target) for node in folded.module.graph.nodes]
    assert not any("batch_norm" in name for name in names)
    with torch.no_grad():
        expected: Tensor = net(x)
        torch.testing.assert_close(folded.module(x[:1])[0], expected[:1])
    quantized = edgefold.quantize_model(folded, x[:1], calibration=x, observer="minmax")
    found = torch.tensor(reference_outputs(quantized, (x,), batch=1)[0])
    assert float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum())) > 25
