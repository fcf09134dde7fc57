"""State and chance that hide: wherever a module keeps them, it does not fold, and plain ways of writing still do."""

from __future__ import annotations

import array
import contextvars
import ctypes
import datetime
import functools
import gc
import logging
import math
import os
import random
import secrets
import sys
import threading
import time
import uuid
import weakref
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.errors import UnsupportedError
from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import FoldedTree, fold_tree
from edgefold.export.fold.kernel import FoldedConv

WEIGHT = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3))
SYSTEM = random.SystemRandom()
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE", default=0)


class Hidden(nn.Module):
    """A convolution whose scale depends, far below any tolerance, on what a step of foreign code gives."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, step: Callable[[Hidden], Any], **held: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.step = step
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1.0 + 1e-30 * float(self.step(self)))


def fold(module: nn.Module) -> FoldedTree:
    return fold_tree(module.eval(), (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),), {})


class Slots:
    """An object without a dict."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Tool:
    """An object of foreign code that holds things, counts in its class and can be called."""

    shared = 0

    def __init__(self, held: Any = None) -> None:
        self.held = held
        self.count = 0

    def __call__(self, module: Hidden) -> int:
        self.count += 1
        return self.count

    def tick(self, module: Hidden) -> int:
        Tool.shared += 1
        return Tool.shared


def _default(module: Hidden, box: list[int] = [0]) -> int:  # noqa: B006  (the fault under test)
    box[0] += 1
    return box[0]


def _keyword(module: Hidden, *, box: dict[str, int] = {"n": 0}) -> int:  # noqa: B006  (the fault under test)
    box["n"] += 1
    return box["n"]


def _attribute(module: Hidden) -> int:
    _attribute.count = getattr(_attribute, "count", 0) + 1  # type: ignore[attr-defined]
    return int(_attribute.count)  # type: ignore[attr-defined]


def _first(box: Any, key: Any = 0) -> int:
    box[key] += 1
    return int(box[key])


def _grow(box: Any) -> int:
    box.count = getattr(box, "count", 0) + 1
    return int(box.count)


def _variable(module: Hidden) -> int:
    VARIABLE.set(VARIABLE.get() + 1)
    return VARIABLE.get()


@functools.lru_cache(maxsize=None)  # noqa: UP033
def _unbounded() -> list[int]:
    return [0]


@functools.lru_cache(maxsize=4)
def _bounded(size: int) -> list[int]:
    return [size]


def _environment(module: Hidden) -> int:
    os.environ["EDGEFOLD_TEST_COUNT"] = str(int(os.environ.get("EDGEFOLD_TEST_COUNT", "0")) + 1)
    return int(os.environ["EDGEFOLD_TEST_COUNT"])


vars(np)["edgefold_count"] = 0


def _library(module: Hidden) -> int:
    np.edgefold_count += 1  # type: ignore[attr-defined]
    return int(np.edgefold_count)  # type: ignore[attr-defined]


def _made_module(name: str) -> Any:
    module = sys.modules[name] = ModuleType(name)
    exec("count = 0\ndef tick():\n    global count\n    count += 1\n    return count", vars(module))
    return module


PACKAGE = _made_module("edgefold_tests_state")
PACKAGE.part = _made_module("edgefold_tests_state.part")


def _dotted(module: Hidden) -> int:
    return int(PACKAGE.part.tick())


def _imported(module: Hidden) -> int:
    import edgefold_tests_state  # type: ignore[import-not-found]

    return int(edgefold_tests_state.tick())


def _global(module: Hidden) -> int:
    globals()["EDGEFOLD_COUNT"] = globals().get("EDGEFOLD_COUNT", 0) + 1
    return int(globals()["EDGEFOLD_COUNT"])


def _number(module: Hidden) -> int:
    NUMBER.value += 1
    return NUMBER.value


def _thread(module: Hidden) -> int:
    box: list[float] = []
    thread = threading.Thread(target=lambda: box.append(time.time()))
    thread.start()
    thread.join()
    return int(box[0])


def _deep(depth: int) -> tuple[list[Any], list[int]]:
    inner: list[int] = [0]
    outer: list[Any] = inner
    for _ in range(depth):
        outer = [outer]
    return outer, inner


DEEP, INNER = _deep(30)
OBJECTS = [SimpleNamespace(inner=Tool([{"a": (Slots(),)}]))]
NUMBER = ctypes.c_long(0)
LOCAL = threading.local()
LOCAL.count = 0
LIBRARY = ctypes.CDLL(None)
KEPT = Tool()
WEAK = weakref.ref(KEPT)


def _in_class(module: Hidden) -> int:
    return OBJECTS[0].inner.tick(module)


def _hidden_module(module: Any) -> int:
    module.tool.held.total = getattr(module.tool.held, "total", 0) + 1
    return int(module.tool.held.total)


def _layer(module: Any) -> int:
    module.conv.count = getattr(module.conv, "count", 0) + 1
    return int(module.conv.count)


STATE: dict[str, Callable[[], Hidden]] = {
    "default argument": lambda: Hidden(_default),
    "keyword default": lambda: Hidden(_keyword),
    "attribute of a function": lambda: Hidden(_attribute),
    "slots": lambda: Hidden(lambda module: _grow(module.slots), slots=Slots()),
    "object in objects": lambda: Hidden(lambda module: _grow(OBJECTS[0].inner.held[0]["a"][0])),
    "deep list": lambda: Hidden(lambda module: _first(module.deep[1]), deep=_deep(30)),
    "deep global list": lambda: Hidden(lambda module: _first(INNER), deep=DEEP),
    "bytearray": lambda: Hidden(lambda module: _first(module.data), data=bytearray(1)),
    "array": lambda: Hidden(lambda module: _first(module.data), data=array.array("l", [0])),
    "memoryview": lambda: Hidden(lambda module: _first(module.data), data=memoryview(bytearray(1))),
    "ctypes number": lambda: Hidden(_number),
    "numpy objects": lambda: Hidden(lambda module: _first(module.data[0]), data=np.array([[0], None], dtype=object)),
    "dict of objects": lambda: Hidden(lambda module: _first(module.data, "a"), data=UserDict(a=0)),
    "context variable": lambda: Hidden(_variable),
    "thread local": lambda: Hidden(lambda module: _grow(LOCAL)),
    "weak reference": lambda: Hidden(lambda module: _grow(WEAK())),
    "unbounded cache": lambda: Hidden(lambda module: _first(_unbounded())),
    "bounded cache": lambda: Hidden(lambda module: _first(_bounded(3))),
    "callable object": lambda: Hidden(Tool()),
    "bound method": lambda: Hidden(Tool().tick),
    "class of an object": lambda: Hidden(_in_class),
    "partial": lambda: Hidden(functools.partial(lambda box, module: _first(box), [0])),
    "module in an object": lambda: Hidden(_hidden_module, tool=Tool(nn.Sequential(nn.Conv2d(4, 4, 1)))),
    "attribute of a layer": lambda: Hidden(_layer),
    "attribute of a library": lambda: Hidden(_library),
    "environment": lambda: Hidden(_environment),
    "module in a module": lambda: Hidden(_dotted),
    "module that is imported late": lambda: Hidden(_imported),
    "globals by name": lambda: Hidden(_global),
}
CHANCE: dict[str, Callable[[Hidden], Any]] = {
    "os.urandom": lambda module: os.urandom(1)[0],
    "secrets": lambda module: secrets.randbelow(9),
    "system random": lambda module: random.SystemRandom().random(),
    "shared system random": lambda module: SYSTEM.random(),
    "held system random": lambda module: module.held.random(),
    "fresh random": lambda module: random.Random().random(),
    "fresh numpy": lambda module: np.random.default_rng().random(),
    "uuid": lambda module: uuid.uuid4().int % 9,
    "time": lambda module: time.time(),
    "perf_counter": lambda module: time.perf_counter(),
    "a partial clock": functools.partial(lambda clock, module: clock(), functools.partial(time.time)),
    "now": lambda module: datetime.datetime.now().microsecond,
    "thread": _thread,
    "id": lambda module: id(object()) % 7,
    "C library": lambda module: LIBRARY.rand(),
    "file": lambda module: len(Path(__file__).read_bytes()),
    "file in NumPy": lambda module: len(np.fromfile(__file__, np.uint8)),
    "file through NumPy": lambda module: float(np.loadtxt(Path(__file__).with_name("number.txt"))),
}


@pytest.mark.parametrize("name", STATE)
def test_state_anywhere_does_not_fold(name: str) -> None:
    tree = fold(STATE[name]())
    assert not isinstance(tree.module, FoldedConv)
    assert tree.decisions[0].reason


@pytest.mark.parametrize("name", CHANCE)
def test_chance_and_clocks_do_not_fold(name: str) -> None:
    tree = fold(Hidden(CHANCE[name], held=random.SystemRandom()))
    assert not isinstance(tree.module, FoldedConv)
    assert tree.decisions[0].reason


class Plain(nn.Module):
    """A convolution written by a function of its weight and its input, with whatever it holds."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, function: Callable[[Plain, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        self.function = function
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@functools.lru_cache(maxsize=8)
def _mask(size: int, p: int) -> Tensor:
    return torch.tensor([[float((m - n) % p == 0) for m in range(size)] for n in range(size)])[..., None, None]


def _masked(module: Plain, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight * _mask(4, 2), padding=1)


def _checked(module: Plain, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or len(x.shape) != 4:
        raise ValueError(f"expected four dimensions, found {tuple(x.shape)}")
    sizes = {"padding": 1, **module.options}
    return F.conv2d(x, module.weight, **sizes) * math.prod(range(1, 3))


def _logged(module: Plain, x: Tensor) -> Tensor:
    LOG.info("input of %s", tuple(x.shape))
    return F.conv2d(x, module.weight) * 2


def _lists(module: Plain, x: Tensor) -> Tensor:
    rows = [sum(conv(x[:, m : m + 1]) for m, conv in enumerate(row)) for row in module.rows]
    return torch.cat(rows, dim=1)


def _rows() -> list[list[nn.Module]]:
    return [[nn.Conv2d(1, 1, 3, padding=1) for _ in range(4)] for _ in range(4)]


LOG = logging.getLogger(__name__)
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "cached mask": lambda: Plain(_masked),
    "checks, options, C functions": lambda: Plain(_checked, options={"stride": 1}),
    "logging": lambda: Plain(_logged),
    "lists of layers": lambda: Plain(_lists, rows=_rows()),
    "partial": lambda: Plain(functools.partial(lambda scale, module, x: F.conv2d(x, module.weight) * scale, 2.0)),
    "object of layers": lambda: Plain(
        lambda module, x: module.tool.held[0](x) + module.tool.held[1](x), tool=Tool(_rows_of_two())
    ),
    "generator of its own": lambda: Plain(lambda module, x: F.conv2d(x, module.weight) * (1 + np.random.default_rng(0).random())),
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)),
}


def _rows_of_two() -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_ways_of_writing_fold(name: str) -> None:
    torch.manual_seed(0)
    module = PLAIN[name]().eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        module(x)  # fills its caches
    tree = fold(module)
    assert isinstance(tree.module, FoldedConv), tree.decisions[0].reason
    with torch.no_grad():
        torch.testing.assert_close(tree.module(x), module(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("step", [CHANCE["os.urandom"], CHANCE["shared system random"]])
def test_a_network_that_draws_from_the_system_is_refused(step: Callable[[Hidden], Any]) -> None:
    with pytest.raises(UnsupportedError, match="draws random numbers outside of PyTorch"):
        fold_module(Hidden(step).eval(), torch.randn(2, 4, 8, 8))


def test_a_part_that_reads_a_clock_leaves_the_rest() -> None:
    timed = Hidden(CHANCE["perf_counter"])
    tree = fold(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU(), timed))
    reasons = {decision.name: decision.reason for decision in tree.decisions}
    assert reasons["0"] == ""
    assert reasons["2"] == "calls time.perf_counter, which may give something else in every call"


def test_a_collection_of_garbage_is_not_taken_for_a_call_of_the_network() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        time.perf_counter()

    def forward(module: Plain, x: Tensor) -> Tensor:
        return F.conv2d(x.relu(), module.weight, padding=1).mul(2.0).relu()

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        result = fold_module(Plain(forward).eval(), torch.randn(2, 4, 8, 8))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    assert any(layer.folded for layer in result.plan.layers), [layer.reason for layer in result.plan.layers]
