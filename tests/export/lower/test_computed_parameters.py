"""Parameters between two grouped convolutions that are computed, or stand at two places of one op: no order may be lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.lower.lower import lower

IMAGE = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(5))


class Between(nn.Module):
    """Two convolutions whose groups are the channels of one residue, and what stands between them."""

    def __init__(self, between: Callable[[Between, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = _strided(), _strided()
        self.gain, self.variance = (nn.Parameter(torch.rand(shape) + 0.5) for shape in ((8, 1, 1), (8,)))
        self.linear = nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self, torch.relu(self.first(x))))
        return y

    def computed(self, y: Tensor) -> Tensor:
        """(C,) of the image itself."""
        found: Tensor = self.linear(y.mean((2, 3)))[0]
        return found


def _strided() -> nn.Conv2d:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    places = torch.arange(8)
    conv.weight.data *= ((places[:, None] - places) % 2 == 0)[..., None, None]
    return conv


BETWEEN: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "both bounds": lambda net, y: torch.clamp(y, net.gain, net.gain) + y,
    "both factors": lambda net, y: torch.addcmul(y, net.gain, net.gain),
    "slope": lambda net, y: F.prelu(y - 1, net.computed(y)),
    "batch norm": lambda net, y: F.batch_norm(y, net.variance.detach(), net.variance.detach(), net.computed(y)),
    "layer norm": lambda net, y: F.layer_norm(y.permute(0, 2, 3, 1), (8,), net.computed(y)).permute(0, 3, 1, 2),
    "group norm": lambda net, y: F.group_norm(y, 1, net.computed(y)),
    "bias": lambda net, y: F.linear(y.permute(0, 2, 3, 1), net.linear.weight, net.computed(y)).permute(0, 3, 1, 2),
    "index": lambda net, y: y[:, y.mean((0, 2, 3)).argsort()],
}


@pytest.mark.parametrize("lowering", ["grouped", "split", "auto"])
@pytest.mark.parametrize("name", BETWEEN)
def test_outputs_stay(name: str, lowering: str) -> None:
    net = Between(BETWEEN[name]).eval()
    folded = edgefold.fold(net, IMAGE)
    lowered = lower(folded.program, format=Format.ONNX, precision=Precision.FP32, lowering=lowering)
    with torch.no_grad():
        torch.testing.assert_close(lowered.program.graph(IMAGE)[0], net(IMAGE), rtol=0, atol=1e-5)
