"""Regions of the captured graph: functional code folds as far as it is affine, and no further."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from branch_forms import norm
from torch import Tensor, nn

from edgefold.export.fold import FoldResult, fold_module


def ops_of(result: FoldResult) -> list[str]:
    calls = (node for node in result.module.graph.nodes if node.op == "call_function")
    return [str(node.target).removeprefix("aten.").split(".")[0] for node in calls]


def fold(module: nn.Module, x: Tensor) -> FoldResult:
    result = fold_module(module.eval(), x)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(result.module(x)[0], expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    return result


class Residual(nn.Module):
    """Two convolutions with BatchNorms in functional code, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


def test_a_residual_network_keeps_one_conv_for_each_pair() -> None:
    result = fold(nn.Sequential(Residual(6), Residual(6)), torch.randn(2, 6, 9, 9))
    assert ops_of(result) == ["conv2d", "relu", "conv2d", "add", "relu"] * 2
    assert [layer.name for layer in result.plan.layers] == ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    assert all(layer.folded and layer.kind == "conv2d + batch_norm" for layer in result.plan.layers)


def test_branches_become_one_convolution_and_an_outside_user_prevents_it() -> None:
    class Branches(nn.Module):
        def __init__(self, *, leak: bool) -> None:
            super().__init__()
            self.wide, self.point, self.leak = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), leak

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(x)
            wide = self.wide(x)
            y = wide + self.point(x) + x
            return y.relu() + (wide.tanh() if self.leak else 0)

    x = torch.randn(1, 4, 8, 8)
    assert ops_of(fold(Branches(leak=False), x))[:3] == ["sigmoid", "conv2d", "relu"]
    assert ops_of(fold(Branches(leak=True), x)).count("conv2d") == 2


def test_a_residual_bottleneck_without_activation_is_not_merged() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.depth, self.project = (
                nn.Conv2d(4, 24, 1),
                nn.Conv2d(24, 24, 3, 1, 1, groups=24),
                nn.Conv2d(24, 4, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))

    result = fold(nn.Sequential(Bottleneck(), Bottleneck()), torch.randn(1, 4, 8, 8))
    assert ops_of(result).count("conv2d") == 6
    depthwise = [layer for layer in result.plan.layers if layer.name.endswith("depth")]
    assert [layer.macs for layer in depthwise] == [24 * 9 * 64] * 2


def test_a_separable_pair_stays_separable() -> None:
    class Separable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)
            self.norms = nn.ModuleList([norm(8), norm(16)])

        def forward(self, x: Tensor) -> Tensor:
            return self.norms[1](self.point(self.norms[0](self.depth(x))))

    result = fold(nn.Sequential(nn.ReLU(), Separable()), torch.randn(1, 8, 10, 10))
    assert ops_of(result) == ["relu", "conv2d", "conv2d"]
    assert [layer.kernel_map.full if layer.kernel_map else 0 for layer in result.plan.layers] == [8, 128]


def test_a_shuffle_does_not_scatter_groups() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1, groups=4, bias=False), norm(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x.relu()))
            return y.view(len(y), 4, 2, *y.shape[2:]).transpose(1, 2).reshape(y.shape).relu()

    result = fold(Shuffled(), torch.randn(1, 8, 6, 6))
    assert ops_of(result).count("conv2d") == 1
    assert "batch_norm" not in " ".join(ops_of(result))
    node = next(node for node in result.module.graph.nodes if "conv2d" in str(node.target))
    assert node.args[6] == 4


def test_a_norm_before_a_padded_convolution_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run on zeros says so: the many such parts of a network like GhostNetV2 took minutes."""
    for function in ("locate", "probe"):
        monkeypatch.setattr(f"edgefold.export.fold.attempt.{function}", lambda *_, **__: pytest.fail("not needed"))
    result = fold(nn.Sequential(nn.ReLU(), norm(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), torch.randn(1, 4, 8, 8))
    assert len(ops_of(result)) > 3
    (layer,) = result.plan.layers
    assert not layer.folded
    assert "bias varies over space" in layer.reason


def test_a_norm_before_an_unpadded_convolution_folds() -> None:
    result = fold(nn.Sequential(nn.ReLU(), norm(4), nn.Conv2d(4, 4, 3), nn.ReLU()), torch.randn(1, 4, 8, 8))
    assert ops_of(result) == ["relu", "conv2d", "relu"]


def test_asymmetric_padding_is_a_pad_and_symmetric_padding_is_none() -> None:
    class Padded(nn.Module):
        def __init__(self, sizes: tuple[int, ...]) -> None:
            super().__init__()
            self.conv, self.norm, self.sizes = nn.Conv2d(4, 4, 3), norm(4), sizes

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(F.pad(x.relu(), self.sizes)))

    x = torch.randn(1, 4, 8, 8)
    assert ops_of(fold(Padded((0, 1, 0, 1)), x)) == ["relu", "pad", "conv2d"]
    assert ops_of(fold(Padded((1, 1, 1, 1)), x)) == ["relu", "conv2d"]


def test_gathers_convolutions_and_a_permutation_in_a_forward() -> None:
    class Gathers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.even, self.odd = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            y = torch.stack([self.even(x[:, ::2]), self.odd(x[:, 1::2])], dim=2).flatten(1, 2)
            return y[:, torch.tensor([5, 0, 3, 2, 1, 4])].relu()

    result = fold(Gathers(), torch.randn(2, 8, 7, 7))
    assert ops_of(result) == ["relu", "conv2d", "relu"]
    (layer,) = result.plan.layers
    assert layer.kernel_map is not None
    assert len(layer.kernel_map.groups) == 2


def test_sequences_fold_too() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 6, 5, 2, 2), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu()

    assert ops_of(fold(Sequence(), torch.randn(2, 4, 31))) == ["conv1d", "relu"]


@pytest.mark.parametrize("batch", [1, 3])
def test_what_mixes_a_batch_stays(batch: int) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x.relu())
            return (y + 0.1 * y.flip(0)).relu()

    assert "flip" in ops_of(fold(Mixed(), torch.randn(batch, 4, 5, 5)))


def test_an_accumulator_like_a_value_before_the_region_is_no_second_input() -> None:
    class Shifts(nn.Module):
        """A convolution as a sum of shifted 1x1 convolutions."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(x)
            padded, y = F.pad(x, (1, 1, 1, 1)), torch.zeros_like(x)
            for i in range(3):
                for j in range(3):
                    part = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
                    y = y + F.conv2d(part, self.weight[:, :, i : i + 1, j : j + 1])
            return torch.sigmoid(y)

    assert ops_of(fold(Shifts(), torch.randn(1, 4, 8, 8))) == ["sigmoid", "conv2d", "sigmoid"]


def test_code_that_does_not_give_the_same_outputs_in_float32_stays_alone() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(torch.sigmoid(x) * 1e-42 * 1e38 * 1e4) + self.b(x)
            return torch.sigmoid(self.c(torch.sigmoid(y)) * 2.0)

    result = fold(Overflows(), torch.randn(1, 4, 8, 8))
    folded = {layer.name: layer.folded for layer in result.plan.layers}
    assert folded == {"a": False, "b": False, "c": True}
    assert any("float32" in layer.reason for layer in result.plan.layers if layer.name == "a")


def test_a_depthwise_convolution_of_a_piece_of_the_channels_is_left_without_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Piece(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x[:, 4:], self.weight, groups=4).relu()

    monkeypatch.setattr("edgefold.export.fold.graph.attempt", None)
    assert ops_of(fold(Piece(), torch.randn(1, 8, 9, 9))) == ["slice", "conv2d", "relu"]
