"""Lowering must not change what a network computes: random graphs, every lowering, float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.capture import capture
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering
from edgefold.export.program import LoweredProgram

SIZE = 4
Step = Callable[[nn.Module, list[Tensor]], Tensor]


def het(channels: int, out: int, p: int, kernel: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    n, m = torch.arange(out)[:, None], torch.arange(channels)[None]
    mask = torch.zeros_like(conv.weight)
    mask[:, :, kernel // 2, kernel // 2] = 1
    mask[(m - n) % p == 0] = 1
    with torch.no_grad():
        conv.weight.mul_(mask)
    return conv


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.shift = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1) + self.shift


class ChannelsLast(nn.Module):
    """LayerNorm and linear over the channels, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class Branches(nn.Module):
    """Branches that are stacked along an axis of their own, then weighted and summed, as in selective kernels."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.one, self.two, self.axis = het(channels, channels, 2), nn.Conv2d(channels, channels, 1), axis
        self.weight = nn.Parameter(torch.randn(2, 1, 1, 1, 1) if axis == 0 else torch.randn(1, 2, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.stack([self.one(x), self.two(x)], self.axis) * self.weight).sum(self.axis)


class Broadcast(nn.Module):
    """One map for all channels, which have a threshold or a depthwise kernel each."""

    def __init__(self, channels: int, *, depthwise: bool) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.randn(channels, 1, 1))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if depthwise else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(1, keepdim=True)
        return (y > self.limit).to(x.dtype) if self.conv is None else self.conv(y.expand(-1, len(self.limit), -1, -1))


def batch_norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def prelu(channels: int) -> nn.Module:
    act = nn.PReLU(channels)
    nn.init.uniform_(act.weight)
    return act


UNARY: dict[str, Callable[[int], nn.Module]] = {
    "het2": lambda c: het(c, c, 2),
    "het4": lambda c: het(c, c, 4),
    "het3": lambda c: het(c, c, 3),
    "wide": lambda c: het(c, 2 * c if c <= 16 else c // 2, 4),
    "conv": lambda c: nn.Conv2d(c, 16, 1),
    "group": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=4),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "multiplied": lambda c: nn.Conv2d(c, 2 * c if c <= 16 else c, 3, padding=1, groups=c),
    "relu": lambda c: nn.ReLU(),
    "hardswish": lambda c: nn.Hardswish(),
    "prelu": prelu,
    "batch_norm": batch_norm,
    "gate": Gate,
    "spatial_gate": lambda c: SpatialGate(),
    "shuffle2": lambda c: Shuffle(2),
    "shuffle4": lambda c: Shuffle(4),
    "scale": Scale,
    "pool": lambda c: nn.MaxPool2d(3, 1, 1),
    "group_norm": lambda c: nn.GroupNorm(2, c),
    "norm": lambda c: nn.GroupNorm(1, c),
    "channels_last": ChannelsLast,
    "softmax": lambda c: nn.Softmax(1),
    "stacked": lambda c: Branches(c, 0),
    "branches": lambda c: Branches(c, 1),
    "threshold": lambda c: Broadcast(c, depthwise=False),
    "broadcast": lambda c: Broadcast(c, depthwise=True),
}
UNFOLLOWED = ("stacked", "branches", "threshold", "broadcast")  # their outputs have channels whose order is not followed
ENDS = ("plain", "mean", "linear", "flat")


class RandomNet(nn.Module):
    """Runs a recipe: each step reads earlier tensors by number and adds one."""

    def __init__(self, steps: list[tuple[str, int, int]], ends: list[tuple[str, int]]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.steps: list[tuple[str, int, int]] = []
        self.picks: dict[str, Tensor] = {}
        channels = [8]
        for name, first, second in steps:
            one, two = first % len(channels), second % len(channels)
            if name == "add":
                same = [index for index, size in enumerate(channels) if size == channels[one]]
                self.steps.append((name, one, same[second % len(same)]))
                channels.append(channels[one])
            elif name == "cat":
                if channels[one] + channels[two] > 32:
                    continue
                self.steps.append((name, one, two))
                channels.append(channels[one] + channels[two])
            elif name in ("half", "stride", "pick"):
                if channels[one] < 16:
                    continue
                self.steps.append((name, one, second % 2))
                channels.append(channels[one] // 2)
                if name == "pick":
                    self.picks[str(len(self.steps))] = torch.randperm(channels[one])[: channels[-1]]
            else:
                part = UNARY[name](channels[one])
                self.parts[str(len(self.steps))] = part
                self.steps.append((name, one, one))
                with torch.no_grad():
                    channels.append(part(torch.zeros(1, channels[one], SIZE, SIZE)).shape[1])
        self.ends: list[tuple[str, int]] = []
        for end, index in ends:
            self.ends.append((end, index % len(channels)))
            if end == "linear":
                self.parts[f"end{len(self.ends)}"] = nn.Linear(channels[self.ends[-1][1]] * SIZE * SIZE, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for place, (name, one, two) in enumerate(self.steps):
            if name == "add":
                values.append(values[one] + values[two])
            elif name == "cat":
                values.append(torch.cat([values[one], values[two]], 1))
            elif name == "half":
                values.append(values[one].chunk(2, 1)[two])
            elif name == "stride":
                values.append(values[one][:, two::2])
            elif name == "pick":
                values.append(values[one][:, self.picks[str(place + 1)]])
            else:
                values.append(self.parts[str(place)](values[one]))
        results = []
        for place, (end, index) in enumerate(self.ends, 1):
            value = values[index]
            if end == "mean":
                value = value.mean((2, 3))
            elif end == "linear":
                value = self.parts[f"end{place}"](value.flatten(1))
            elif end == "flat":
                value = torch.flatten(value, 1)
            results.append(value)
        return tuple(results)


number = st.integers(0, 30)
step = st.tuples(st.sampled_from([*UNARY, "add", "add", "add", "cat", "cat", "half", "half", "stride", "pick"]), number, number)
end = st.tuples(st.sampled_from(ENDS), st.integers(0, 30))
recipe = st.tuples(st.lists(step, min_size=2, max_size=14), st.lists(end, min_size=1, max_size=2))


def gathers_in(lowered: LoweredProgram) -> int:
    return sum(node.target is torch.ops.aten.index_select.default for node in lowered.program.graph.graph.nodes)


def check(net: RandomNet, lowering: Lowering | Literal["auto"]) -> LoweredProgram:
    net = net.double().eval()
    x = torch.randn(1, 8, SIZE, SIZE, dtype=torch.float64)
    program = capture(net, x)
    before = copy.deepcopy(program.graph.graph)
    lowered = lower(program, format=Format.ONNX, precision=Precision.FP32, lowering=lowering)
    assert [str(node.target) for node in before.nodes] == [str(node.target) for node in program.graph.graph.nodes]
    expected, found = net(x), lowered.program.graph(x)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-8)
    assert lowered.plan.gathers == gathers_in(lowered)
    return lowered


@pytest.mark.parametrize("lowering", [Lowering.GROUPED, Lowering.SPLIT])
@pytest.mark.parametrize("name", UNFOLLOWED)
def test_convolutions_of_channels_that_are_not_followed(name: str, lowering: Lowering) -> None:
    torch.manual_seed(0)
    steps = [("het2", 0, 0), (name, 1, 0), ("het4", 2, 0), ("group", 2, 0), ("depthwise", 2, 0), ("add", 3, 2), ("conv", 6, 0)]
    check(RandomNet(steps, [("plain", 7), ("plain", 4)]), lowering)


@pytest.mark.slow
@given(recipe, st.sampled_from([*Lowering, "auto"]), st.integers(0, 2**31))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_any_lowering(
    recipe: tuple[list[tuple[str, int, int]], list[tuple[str, int]]], lowering: Lowering | Literal["auto"], seed: int
) -> None:
    torch.manual_seed(seed)
    check(RandomNet(*recipe), lowering)


@given(recipe, st.integers(0, 2**31))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_a_sample_of_graphs_grouped(recipe: tuple[list[tuple[str, int, int]], list[tuple[str, int]]], seed: int) -> None:
    torch.manual_seed(seed)
    check(RandomNet(*recipe), Lowering.GROUPED)
