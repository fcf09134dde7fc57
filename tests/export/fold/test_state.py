"""What a network keeps between calls: a graph cannot hold it, so it is refused, unless it only fills caches."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forms import LoopHetConv
from torch import Tensor, nn

from edgefold.errors import CheckError, UnsupportedError
from edgefold.export.capture import capture
from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.state import Reader

TALLY = [0]


class Counted(nn.Module):
    """A convolution in a loop and a step of foreign code, which may keep whatever it likes."""

    calls = 0
    total: Tensor

    def __init__(self, step: Callable[[Counted, Tensor], Any]) -> None:
        super().__init__()
        self.conv = LoopHetConv(4, 4, 2)
        self.step = step
        self.count = 0
        self.recent: deque[int] = deque(maxlen=50)
        self.ticks = itertools.count()
        self.rest = iter(range(10_000))
        self.numbers = (index for index in range(10_000))
        self.options = SimpleNamespace(calls=0)
        self.cache: dict[tuple[int, ...], Tensor] = {}
        self.seen: Any = None
        self.register_buffer("total", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.step(self, x)
        y: Tensor = self.conv(x)
        return y.relu()


def _attribute(module: Counted, x: Tensor) -> None:
    module.count += 1


def _class(module: Counted, x: Tensor) -> None:
    Counted.calls += 1


def _object(module: Counted, x: Tensor) -> None:
    module.options.calls += 1


def _buffer(module: Counted, x: Tensor) -> None:
    module.total += 1


def _moving(module: Counted, x: Tensor) -> None:
    module.total = 0.9 * module.total + x.mean(dim=(0, 2, 3))[:, None, None]


def _helper() -> None:
    TALLY[0] += 1


def _closure() -> Callable[[Counted, Tensor], None]:
    count = 0

    def step(module: Counted, x: Tensor) -> None:
        nonlocal count
        count += 1

    return step


KEEPS = [
    (_attribute, "'count'"),
    (_class, "Counted.calls"),
    (_object, "'options'"),
    (_buffer, "'total'"),
    (_moving, "'total'"),
    (lambda module, x: module.recent.append(1), "'recent'"),
    (lambda module, x: next(module.ticks), "'ticks'"),
    (lambda module, x: next(module.rest), "'rest'"),
    (lambda module, x: next(module.numbers), "'numbers'"),
    (lambda module, x: _helper(), "TALLY"),
    (_closure(), "count"),
    (lambda module, x: random.random(), "random numbers"),
    (lambda module, x: np.random.rand(), "random numbers"),
]


@pytest.mark.parametrize(("step", "what"), KEEPS)
@pytest.mark.parametrize("nested", [False, True])
def test_what_changes_in_every_call_is_refused_by_name(step: Callable[[Counted, Tensor], Any], what: str, nested: bool) -> None:
    module: nn.Module = Counted(step)
    if nested:
        module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(module))
    with pytest.raises(UnsupportedError, match=what) as caught:
        fold_module(module.eval(), torch.randn(1, 4, 6, 6))
    assert ("'1.0'" in str(caught.value)) == (nested and what != "random numbers")


def test_a_counting_hook_is_refused() -> None:
    calls: list[int] = []
    module = nn.Sequential(LoopHetConv(4, 4, 2), nn.ReLU()).eval()
    module[0].register_forward_hook(lambda layer, args, out: calls.append(1))
    with pytest.raises(UnsupportedError, match="calls"):
        fold_module(module, torch.randn(1, 4, 6, 6))


def _first_call(module: Counted, x: Tensor) -> None:
    module.count = 1


def _memo(module: Counted, x: Tensor) -> None:
    if x.shape not in module.cache:
        module.cache[tuple(x.shape)] = torch.linspace(0, 1, x.shape[-1])


def _last(module: Counted, x: Tensor) -> None:
    module.seen = SimpleNamespace(features=x * 2, size=x.shape)


def _scratch(module: Counted, x: Tensor) -> None:
    module.total.zero_()
    module.total += x.mean(dim=(0, 2, 3))[:, None, None]


@pytest.mark.parametrize("step", [_first_call, _memo, _last, _scratch])
def test_a_cache_that_settles_is_none_of_it(step: Callable[[Counted, Tensor], Any]) -> None:
    module = nn.Sequential(Counted(step), LoopHetConv(4, 4, 2), nn.ReLU()).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = module(x)
    result = fold_module(module, x)
    torch.testing.assert_close(result.module(x)[0], expected, rtol=0, atol=1e-5)
    assert any(layer.name == "1" and layer.folded for layer in result.plan.layers)


def test_a_random_draw_over_weights_is_not_frozen() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.bernoulli(self.weight * 0.5))

    x = torch.ones(1, 4, 3, 3)
    graph = capture(Dropped().eval(), x).graph
    assert not torch.equal(graph(x)[0], graph(x)[0])


def test_the_state_of_a_large_network_is_not_noted_again_for_each_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[nn.Module] = []
    state = Reader.state

    def counted(reader: Reader, module: nn.Module) -> dict[str, Any]:
        noted.append(module)
        return state(reader, module)

    def work(count: int) -> int:
        blocks = [nn.Sequential(LoopHetConv(4, 4, 2), nn.ReLU()) for _ in range(count)]
        noted.clear()
        result = fold_module(nn.Sequential(*blocks).eval(), torch.randn(1, 4, 6, 6))
        assert sum(layer.folded for layer in result.plan.layers) == count
        return len(noted)

    monkeypatch.setattr(Reader, "state", counted)
    assert work(12) < 2.5 * work(6)


class Masked(nn.Module):
    """A convolution that rewrites its own weights through ``.data`` when it is called, as PixelCNN's masked one does."""

    mask: Tensor

    def __init__(self, step: Callable[[Masked], None], *, late: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        mask = torch.ones(4, 4, 3, 3)
        mask[:, 2:, 0] = 0
        self.register_buffer("mask", mask)
        self.step, self.late = step, late

    def forward(self, x: Tensor) -> Tensor:
        if not self.late:
            self.step(self)
        y: Tensor = self.conv(x)
        if self.late:
            self.step(self)
        return y.relu()


def _in_place(module: Masked) -> None:
    module.conv.weight.data *= module.mask


def _assigned(module: Masked) -> None:
    module.conv.weight.data = module.conv.weight.data * module.mask


def _decay(module: Masked) -> None:
    module.conv.weight.data *= 0.5


@pytest.mark.parametrize("step", [_in_place, _assigned])
def test_a_convolution_that_masks_its_own_weights_is_one_with_the_masked_weights(step: Callable[[Masked], None]) -> None:
    torch.manual_seed(0)
    net, x = Masked(step).eval(), torch.randn(2, 4, 9, 9)
    masked, bias = (net.conv.weight * net.mask).double(), net.get_parameter("conv.bias").double()
    expected = F.conv2d(x.double(), masked, bias, padding=1).relu()
    folded = fold_module(net, x)
    (conv,) = (node for node in folded.module.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    weight = getattr(folded.module, str(conv.args[1].target))
    assert torch.equal(weight, net.conv.weight * net.mask)
    assert torch.allclose(folded.module(x)[0].double(), expected, atol=1e-6)


@pytest.mark.parametrize(("step", "late"), [(_decay, False), (_in_place, True), (_assigned, True)])
def test_a_convolution_whose_weights_are_others_in_the_next_call_is_refused(step: Callable[[Masked], None], late: bool) -> None:
    with pytest.raises((CheckError, UnsupportedError)):
        fold_module(Masked(step, late=late).eval(), torch.randn(2, 4, 9, 9))


def test_state_of_a_hook_on_all_modules_does_not_fold() -> None:
    counts = [0]

    def counted(module: nn.Module, args: Any, output: Any) -> None:
        counts[0] += 1

    hook = nn.modules.module.register_module_forward_hook(counted)
    try:
        block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
        tree = fold_tree(nn.Sequential(block), (torch.randn(2, 4, 9, 9),), {})
    finally:
        hook.remove()
    assert ["changes its state" in decision.reason for decision in tree.decisions] == [True, True]
