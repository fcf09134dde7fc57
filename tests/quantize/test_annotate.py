from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgefold.export.capture import capture
from edgefold.quantize.annotate import Annotation, annotate
from edgefold.quantize.scheme import QParams


def _annotate(module: nn.Module, *shape: int, keep_float: frozenset[str] = frozenset()) -> Annotation:
    return annotate(capture(module.eval(), torch.zeros(shape)).graph, keep_float)


def _quantized(annotation: Annotation) -> set[str]:
    return {name for group in annotation.groups for name in group}


def test_relu6_is_fused_with_the_conv_before_it() -> None:
    annotation = _annotate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6()), 1, 3, 4, 4)
    assert _quantized(annotation) == {"input_1", "hardtanh"}


def test_a_conv_whose_result_is_used_twice_is_not_fused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y + torch.relu(y)

    assert _quantized(_annotate(Twice(), 1, 3, 4, 4)) == {"x", "conv2d", "relu", "add"}


def test_ops_that_move_values_share_parameters() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = F.max_pool2d(self.conv(x), 2).chunk(2, 1)
            return torch.cat([b, a], 1).flatten(1)

    annotation = _annotate(Moves(), 1, 4, 4, 4)
    assert sorted(len(group) for group in annotation.groups) == [1, 6]
    (shared,) = (set(group) for group in annotation.groups if len(group) == 6)
    assert {"conv2d", "max_pool2d", "getitem", "getitem_1", "cat"} < shared


def test_a_mean_has_parameters_of_its_own() -> None:
    annotation = _annotate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)), 1, 3, 4, 4)
    assert annotation.groups == (("input_1",), ("conv2d",), ("adaptive_avg_pool2d",))


def test_sigmoid_has_the_range_that_kernels_fix() -> None:
    annotation = _annotate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()), 1, 3, 4, 4)
    assert annotation.fixed == {"sigmoid": QParams(1 / 256, -128)}


def test_what_no_integer_op_touches_stays_float() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(torch.sin(self.conv(x)))

    annotation = _annotate(Tail(), 1, 3, 4, 4)
    assert _quantized(annotation) == {"x", "conv2d"}
    assert annotation.weighted == ("conv2d",)


def test_a_layer_kept_float_keeps_only_what_its_neighbours_need() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    annotation = _annotate(module, 1, 3, 4, 4, keep_float=frozenset({"conv2d_2"}))
    assert annotation.weighted == ("conv2d", "conv2d_1")
    assert _quantized(annotation) == {"input_1", "conv2d", "conv2d_1"}


@pytest.mark.parametrize(
    ("join", "fixed"),
    [
        (lambda p, q: torch.cat([p.sigmoid(), q.softmax(1)], 1), True),
        (lambda p, q: torch.cat([p.sigmoid(), q], 1), False),
        (lambda p, q: torch.cat([p.sigmoid(), q.tanh()], 1), False),
        (lambda p, q: F.pad(p.sigmoid(), (1, 1), value=0.5), True),
        (lambda p, q: F.pad(p.sigmoid(), (1, 1), value=4.0), False),
        (lambda p, q: F.avg_pool2d(p.sigmoid(), 2, divisor_override=1), True),  # the product after it has a range of its own
    ],
)
def test_a_fixed_range_is_shared_by_values_within_it_only(join: Callable[..., torch.Tensor], fixed: bool) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return join(self.one(x), self.other(x))

    annotation = _annotate(Joined(), 1, 3, 4, 4)
    (group,) = [names for names in annotation.groups if "sigmoid" in names]
    assert len(group) > 1
    assert (group[0] in annotation.fixed) is fixed
