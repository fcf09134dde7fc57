"""The proof: what is refused, by name, however well it hides, and what the proof leaves behind."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.export.fold.fold import FoldedTree, fold_tree
from edgefold.export.fold.kernel import FoldedConv

WEIGHT = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3))
CHANNELS = torch.tensor([1, 0, 3, 2]).view(1, 4, 1, 1).expand(2, 4, 8, 8)
Function = Callable[[Tensor], Tensor]


class Code(nn.Module):
    """A convolution followed by a function of its output and its input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.conv2d(x, self.weight, padding=1), x)


class Clamping(Tensor):
    """A constant that clamps whatever it is combined with."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Clamping:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        args = [value.held if isinstance(value, Clamping) else value for value in args]
        return op(*args, **(kwargs or {})).clamp(-1e6, 1e6)


@torch.library.custom_op("edgefold_tests::tick", mutates_args=())
def tick(x: Tensor) -> Tensor:
    """An op whose code PyTorch does not know."""
    return x.clone()


def fold(module: nn.Module, shape: tuple[int, ...] = (2, 4, 8, 8)) -> FoldedTree:
    return fold_tree(module.eval(), (torch.randn(shape, generator=torch.Generator().manual_seed(0)),), {})


def reason_for(module: nn.Module) -> str:
    tree = fold(module)
    assert not isinstance(tree.module, FoldedConv)
    return next(decision.reason for decision in tree.decisions if not decision.name)


@pytest.mark.filterwarnings("ignore:The reduce argument:UserWarning")  # deprecated, and still met in foreign code
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda y, x: y.clamp(-1e6, 1e6), "aten.clamp"),
        (lambda y, x: y * y, "two operands that both depend"),
        (lambda y, x: y @ x, "two operands that both depend"),
        (lambda y, x: torch.div(y, 3.0, rounding_mode="floor"), "rounding"),
        (lambda y, x: 1.0 / y, "aten.reciprocal"),
        (lambda y, x: y / x, "where only a constant"),
        (lambda y, x: F.conv2d(x, y[:, :, :3, :3]), "weights that depend on the input"),
        (lambda y, x: F.conv2d(x, WEIGHT + 0 * y.sum(), padding=1), "depend on the input"),
        (lambda y, x: y.to(torch.int32).float(), "integers"),
        (lambda y, x: y.long().float() * 1e-9 + y, "integers"),
        (lambda y, x: y[:, torch.argsort(y.mean(dim=(0, 2, 3)))], "aten.sort"),
        (lambda y, x: torch.where(y > 1e9, y * 0, y), "aten.gt"),
        (lambda y, x: y.masked_fill(y.detach() > 1e9, 0.0), "aten.gt"),
        (lambda y, x: y + y.std() * 1e-12, "aten.std"),
        (lambda y, x: F.layer_norm(y, y.shape[1:]), "aten.native_layer_norm"),
        (lambda y, x: F.batch_norm(y, None, None, training=True), "training"),
        (lambda y, x: F.max_pool2d(y, 1), "aten.max_pool2d"),
        (lambda y, x: torch.cat([y[:, :2], y[:, 2:].relu()], dim=1), "aten.relu"),
        (lambda y, x: y.scatter(1, CHANNELS, x, reduce="multiply"), "reduce='multiply'"),
        (lambda y, x: y.scatter_(1, CHANNELS, x, reduce="multiply"), "reduce='multiply'"),
        (lambda y, x: y.scatter_reduce(1, CHANNELS, x, reduce="prod"), "aten.scatter_reduce"),
        (lambda y, x: y.half().float(), "rounds values to float16"),
        (lambda y, x: y.bfloat16().to(torch.float32), "rounds values to bfloat16"),
        (lambda y, x: torch.stack([y, x]).sum(0, dtype=torch.float16).float(), "rounds values to float16 (aten.sum)"),
        (lambda y, x: torch.zeros(2, 4, 8, 8).half().copy_(y).float(), "rounds values to float16 (aten.copy_)"),
        (lambda y, x: torch.add(y, x, out=torch.zeros(2, 4, 8, 8).half()).float(), "rounds values to float16 (aten.add)"),
        (lambda y, x: y.view(torch.float64).view(torch.float32), "reads the bits"),
        (lambda y, x: y.view(torch.int32).view(torch.float32), "reads the bits"),
        (lambda y, x: (y * 1j * -1j).real, "complex numbers"),
        (lambda y, x: torch.ops.aten._native_batch_norm_legit.no_stats(y, None, None, True, 0.1, 0.0)[0], "in training mode"),
        (lambda y, x: torch.cond(x.sum() > 1e9, lambda one: one * 2, lambda one: one * 3, (y,)), "aten.gt"),
        (lambda y, x: torch.cond(WEIGHT.sum() > 1e9, lambda one: one * 2, lambda one: one * 3, (y,)), "higher-order op cond"),
        (lambda y, x: y * Clamping(torch.ones(1)), "class Clamping"),
        (lambda y, x: y + torch.ops.edgefold_tests.tick(WEIGHT[0, 0, 0, 0]), "custom op edgefold_tests.tick"),
    ],
)  # fmt: skip
def test_an_op_that_is_not_affine_is_refused_by_name(function: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    assert reason in reason_for(Code(function))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda y, x: y if x.max().item() < 1e9 else -y, "aten.max"),
        (lambda y, x: y if float(x[0, 0, 0, 0]) < 1e9 else -y, "reads values"),
        (lambda y, x: y if bool(x[0, 0, 0, 0] < 1e9) else -y, "aten.lt"),
        (lambda y, x: y if torch.equal(x, x) else -y, "compares values"),
        (lambda y, x: y + torch.from_numpy(np.maximum(x.numpy(), 1e9) - 1e9), "reads the memory"),
        (lambda y, x: y + torch.tensor(max(max(x.flatten().tolist()) - 1e9, 0.0)), "reads the memory"),
        (lambda y, x: y + (0.0 if x.data_ptr() else 1.0), "reads the memory"),
        (lambda y, x: y + (copy.deepcopy(x) > 1e9).float(), "reads the memory"),
        (lambda y, x: y if np.asarray(x).max() < 1e9 else -y, "reads the memory"),
        (lambda y, x: 2 * y if len(str(x)) > 1 else -y, "reads the memory"),
        (lambda y, x: 2 * y if f"{x.sum():.3f}" != "1" else -y, "reads the memory"),
    ],
)  # fmt: skip
def test_code_that_looks_at_values_is_refused(function: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    assert reason in reason_for(Code(function))


def test_work_in_another_thread_is_refused() -> None:
    def threaded(y: Tensor, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return y + pool.submit(lambda: F.relu(x - 1e9)).result()

    assert "calls concurrent.futures" in reason_for(Code(threaded))


def test_memory_that_no_op_made_is_of_unknown_origin() -> None:
    capsule = torch._C._to_dlpack  # the way of old code
    assert "unknown origin" in reason_for(Code(lambda y, x: y + torch.utils.dlpack.from_dlpack(capsule(x)).relu() * 1e-30))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # deprecated, and still met in foreign code
def test_script_is_seen_through() -> None:
    clamped = torch.jit.trace(lambda y: y.clamp(-1e9, 1e9), torch.ones(2, 4, 8, 8))  # type: ignore[no-untyped-call]  # torch
    assert "aten.clamp" in reason_for(Code(lambda y, x: clamped(y)))


class Counter(nn.Module):
    """A module with state in a place that a caller chooses."""

    total: Tensor
    calls = 0

    def __init__(self, step: Callable[[Counter], float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.step = step
        self.count = 0
        self.seen: dict[str, list[int]] = {"calls": []}
        self.ticks = itertools.count()
        self.generator = random.Random(0)
        self.numpy = np.random.default_rng(0)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1.0 + 1e-12 * self.step(self))


def _count(module: Counter) -> float:
    module.count += 1
    return module.count


def _append(module: Counter) -> float:
    module.seen["calls"].append(1)
    return len(module.seen["calls"])


GLOBAL = [0]


def _global(module: Counter) -> float:
    GLOBAL[0] += 1
    return GLOBAL[0]


def _tally(module: Counter) -> float:
    module.total += 1
    return float(module.total)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (_count, "'count'"),
        (_append, "'seen'"),
        (lambda module: float(next(module.ticks)), "'ticks'"),
        (lambda module: module.generator.random(), "'generator'"),
        (lambda module: float(module.numpy.random()), "'numpy'"),
        (_tally, "writes into"),
        (lambda module: random.random(), "random"),
        (lambda module: float(np.random.rand()), "random"),
        (lambda module: float(torch.rand(())), "random"),
    ],
)  # fmt: skip
def test_state_and_chance_are_refused(step: Callable[[Counter], float], reason: str) -> None:
    assert reason in reason_for(Counter(step))


def test_state_in_a_global_of_the_class_is_refused() -> None:
    class Global(Counter):
        def forward(self, x: Tensor) -> Tensor:
            GLOBAL[0] += 1
            return self.conv(x) * (1 + 1e-12 * GLOBAL[0])

    assert "GLOBAL" in reason_for(Global(_count))


def test_a_constant_from_outside_of_the_call_is_refused() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Code(lambda y, x: y * holder[0])

        def forward(self, x: Tensor) -> Tensor:
            holder[0] = x.amax()
            return self.inner(x).relu()

    holder: list[Tensor] = [torch.zeros(())]
    tree = fold(Outer())
    assert "outside of its call" in {decision.name: decision.reason for decision in tree.decisions}["inner"]


def test_writing_into_the_input_is_refused_and_undone() -> None:
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    module = Code(lambda y, x: y + x.add_(1.0)).eval()

    tree = fold_tree(module, (x,), {})

    assert not isinstance(tree.module, FoldedConv)
    assert torch.equal(x, before)


def test_a_changed_shape_of_the_input_is_undone() -> None:
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    module = Code(lambda y, x: y + x.transpose_(2, 3).transpose(2, 3)).eval()

    tree = fold_tree(module, (x,), {})

    assert not isinstance(tree.module, FoldedConv)
    assert torch.equal(x, before)
    assert x.stride() == before.stride()


def test_what_a_branch_of_two_graphs_holds_leaves_the_rest() -> None:
    branch = Code(lambda y, x: torch.cond(x.sum() > 1e9, lambda one: one * 2, lambda one: one * 3, (y,)))
    module = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.ReLU(), branch)
    tree = fold(module)
    assert {decision.name for decision in tree.decisions if decision.folded} == {"0"}


def test_buffers_have_their_values_again() -> None:
    module = Counter(_tally).eval()
    fold(module)
    assert float(module.total) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda y, x: y + x,
        lambda y, x: (3 * y - x / 4) * 0.5,
        lambda y, x: torch.stack([y, x]).sum(dim=0),
        lambda y, x: torch.zeros_like(y).copy_(y).mul_(2.0).add_(x),
        lambda y, x: torch.where(WEIGHT[0, :, 0, 0].view(-1, 1, 1) > 0, y, 2 * y),
        lambda y, x: y.masked_fill(torch.tensor([True, False, False, True]).view(-1, 1, 1), 0.0),
        lambda y, x: y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
        lambda y, x: torch.einsum("bchw,nc->bnhw", y, WEIGHT[:, :, 0, 0]),
        lambda y, x: y[:, [2, 0, 1, 3]] + torch.roll(y, 1, dims=1),
        lambda y, x: torch.cat(y.chunk(2, dim=1)[::-1], dim=1),
        lambda y, x: F.avg_pool2d(y, 2),
        lambda y, x: (y.double() + x).float(),
        lambda y, x: y.scatter_add(1, torch.tensor([1, 0, 3, 2]).view(1, 4, 1, 1).expand(y.shape), x),
        lambda y, x: y.new_full((4, 1, 1), 2.0) * y,
        lambda y, x: y - torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1),
    ],
)
def test_affine_code_is_admitted(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    tree = fold(Code(function))
    assert isinstance(tree.module, FoldedConv), [decision.reason for decision in tree.decisions]
