"""The totals of a network, as written, folded and lowered, against torch's own counter and the numbers of the layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgefold.artifact import Format, Precision
from edgefold.export.fold import fold_module
from edgefold.export.lower.plans import lowering_plans
from edgefold.export.plan import Lowering, Totals


class Het(nn.Module):
    """A 3x3 convolution in groups beside a 1x1 one, and a plain one that stays; the sums are over two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, bias=False)
        self.groups = nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False)
        self.point = nn.Conv2d(32, 32, 1, bias=False)
        self.head = nn.Linear(32 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.groups(x) + self.point(x)).flatten(1))


def flops(module: nn.Module, x: Tensor) -> int:
    """Of one sample, by torch's counter, which knows convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // len(x)


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_a_network_is_counted_as_a_whole_before_and_after() -> None:
    module, x = Het().eval(), torch.randn(2, 3, 8, 8)
    plan = fold_module(module, x).plan
    assert plan.before is not None
    assert plan.after is not None
    assert plan.before.flops == flops(module, x)
    assert plan.before.parameters == parameters(module)
    inside = 4 * 8 * 8  # taps of the 1x1 convolution that fall into the groups
    assert plan.after.parameters == parameters(module) - inside
    assert plan.after.flops == plan.before.flops - 2 * inside * 36
    assert plan.after.nodes == plan.before.nodes - 2
    assert plan.before.weight_bytes == 4 * plan.before.parameters


def test_layers_that_are_called_twice_are_counted_once_in_parameters() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    module, x = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()).eval(), torch.randn(1, 4, 8, 8)
    plan = fold_module(module, x).plan
    assert plan.before == plan.after == Totals(4, flops(module, x), parameters(module), 4 * parameters(module))


def test_lowered_networks_are_counted_as_their_files_hold_them() -> None:
    x = torch.randn(2, 3, 8, 8)
    folded = fold_module(Het().eval(), x)
    formats, precisions = (Format.ONNX, Format.TFLITE), (Precision.FP32, Precision.FP16, Precision.INT8)
    dense = 3 * 32 * 9 * 36 + 32 * 32 * 9 * 36 + 32 * 36 * 10
    grouped = 3 * 32 * 9 * 36 + (32 * 8 * 9 + 32 * 32) * 36 + 32 * 36 * 10
    weights = {Lowering.DENSE: 3 * 32 * 9 + 32 * 32 * 9 + 32 * 36 * 10, Lowering.GROUPED: 864 + 2304 + 1024 + 11520}
    element = {Precision.FP32: (4, 4), Precision.FP16: (2, 2), Precision.INT8: (1, 4)}
    for lowering, macs in ((Lowering.DENSE, dense), (Lowering.GROUPED, grouped)):
        plans = lowering_plans(folded.program, formats, precisions, lowering=lowering)
        assert [(one.format, one.precision) for one in plans] == [(form, numbers) for form in formats for numbers in precisions]
        for plan in plans:
            of_weights, of_biases = element[plan.precision]
            assert plan.totals is not None
            assert plan.totals.flops == 2 * macs
            assert plan.totals.weight_bytes == weights[lowering] * of_weights + 10 * of_biases


def test_formats_without_a_precision_are_left_out() -> None:
    folded = fold_module(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 3, 8, 8))
    plans = lowering_plans(folded.program, tuple(Format), (Precision.INT8_WEIGHT_ONLY,))
    assert [plan.format for plan in plans] == [Format.ONNX, Format.TFLITE]
