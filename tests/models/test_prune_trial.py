"""An axis whose channels the code counts stays whole with a reason, and the others are pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgefold.errors import ModelError
from edgefold.models.count import count_cost
from edgefold.models.prune import macs_target, prune_channels, prune_iteratively
from edgefold.models.prune_trial import tried_axes
from edgefold.network import Network
from edgefold.recipe.schema import PruneSection
from edgefold.recipe.stages import Training, prune, start

pytest.importorskip("torch_pruning", reason="the extra prune is not installed")

X = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Counting(nn.Module):
    """`first`, then what a subclass does to its 32 channels, then `last`; the axis of `last` can be pruned in any case."""

    taken = 32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(1, 32, 3), nn.Conv2d(self.taken, 32, 3), nn.Conv2d(32, 2, 1)
        self.register_buffer("constant", torch.rand(1, 32, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.last(self.mixed(torch.relu(self.first(x))))))
        return y

    def mixed(self, x: Tensor) -> Tensor:
        return x


class Chunked(Counting):
    taken = 16

    def mixed(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return one * other.sigmoid()


class Sliced(Counting):
    taken = 16

    def mixed(self, x: Tensor) -> Tensor:
        return x[:, :16]


class Constant(Counting):
    def mixed(self, x: Tensor) -> Tensor:
        return x + self.get_buffer("constant")


class Instance(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, 32)

    def mixed(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class Normed(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 32)

    def mixed(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Chunked, "is split into parts"),
        (Sliced, "meets code that counts its channels"),
        (Constant, "meets code that counts its channels"),
        (Instance, "meets code that counts its channels"),
    ],
)
def test_an_axis_that_is_counted_stays_whole(kind: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    axes, skipped = tried_axes(module, X)
    assert [axis.root for axis in axes] == ["last"]
    (told,) = skipped
    assert told.startswith("the axis of 'first' ")
    assert reason in told
    pruned = prune_channels(module, X, macs_target(module, X, 0.6))
    assert [layer.name for layer in pruned.report.layers] == ["last", "head"]
    assert pruned.report.skipped == skipped
    gone = pruned.removed[0]["last"]
    silent = copy.deepcopy(module)
    with torch.no_grad():
        silent.get_parameter("head.weight")[:, gone] = 0
        torch.testing.assert_close(pruned.module(*X), silent(*X), rtol=1e-5, atol=1e-6)


def test_the_reason_is_told(tmp_path: Path) -> None:
    module = Chunked().eval()
    work = start(Network("chunked", module, X), "chunked", {})
    pruned = prune(work, PruneSection(flops=0.6, epochs=0), Training(None), tmp_path)
    assert "; left whole: the axis of 'first' is split into parts" in pruned.history[0]


def test_a_group_norm_keeps_equal_groups() -> None:
    torch.manual_seed(0)
    module = Normed().eval()
    with torch.no_grad():
        module.get_parameter("norm.weight").copy_(torch.arange(32.0))  # tells the channels apart
    axes, skipped = tried_axes(module, X)
    assert {axis.root: len(axis.units) for axis in axes} == {"first": 8, "last": 32}
    assert skipped == ()
    pruned = prune_channels(module, X, macs_target(module, X, 0.3), round_to=4).module
    kept = pruned.get_parameter("norm.weight").long()
    assert len(kept) < 32
    groups = kept.view(4, -1) - torch.arange(0, 32, 8).view(4, 1)
    assert (groups == groups[0]).all()


def test_a_network_that_does_not_run_is_no_internal_error() -> None:
    class Two(Counting):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]  # that is the point
            return super().forward(x + other)

    for run in (
        lambda: count_cost(Two(), X),
        lambda: prune_iteratively(Two().eval(), X, 0.5, 1, lambda module, index: None),
    ):
        with pytest.raises(ModelError, match=r"Two does not run on its example inputs of shape \(2, 1, 8, 8\): .*'other'"):
            run()
