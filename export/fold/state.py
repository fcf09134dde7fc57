"""Whether running a module changes it: counters, caches, buffers, generators of random numbers.

A function with hidden state can be affine in each call and still be no fixed convolution. So the plain Python state of every
module of own code is noted before and after the runs: numbers, containers, the values of tensors, random generators, and
what its methods, hooks and functions reach (`edgefold.export.fold.reach`).
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Container, Iterable, Iterator
from operator import length_hint
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgefold.export.fold.reach import class_values, functions_of, own_classes, reached
from edgefold.export.fold.shadow import _INTERNAL

_DEEP = 4  # nested containers and objects are followed so far
_SIMPLE = (int, float, complex, str, bytes, bool, range, slice, torch.dtype, torch.device, np.generic, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Snapshot:
    """The state of modules at one moment.

    With ``copies`` of its tensors, one that is written again with the same values counts as unchanged.
    """

    def __init__(self, modules: Iterable[nn.Module], *, copies: bool = False) -> None:
        self._modules = list(modules)
        self._alive: list[Any] = []  # keeps what is compared by identity from being replaced at the same address
        self._copies = copies
        classes: dict[type, dict[str, Any]] = {}
        self._before = [self._state(module, classes) for module in self._modules]
        self._random = _random_state()

    def changed(self, among: Container[int] | None = None) -> dict[int, str]:
        """The modules (by id) whose state is another now, with what changed; looked for ``among`` some of them, or all."""
        found = {}
        classes: dict[type, dict[str, Any]] = {}
        for module, before in zip(self._modules, self._before, strict=True):
            if among is not None and id(module) not in among:
                continue
            after = self._state(module, classes)
            for name in before.keys() | after.keys():
                if before.get(name, "absent") != after.get(name, "absent"):
                    found[id(module)] = f"changes its state between calls ('{name}')"
        return found

    def draws_random_numbers(self) -> bool:
        """Whether Python's, NumPy's or PyTorch's global generator has moved."""
        return _random_state() != self._random

    def draws_outside_of_the_graph(self) -> bool:
        """Whether Python's or NumPy's global generator has moved: a captured graph would hold one draw for ever."""
        return _random_state()[:2] != self._random[:2]

    def _state(self, module: nn.Module, classes: dict[type, dict[str, Any]]) -> dict[str, Any]:
        kind = type(module)
        if kind not in classes:
            classes[kind] = self._state_of_class(kind)
        state = {name: self._print(value, _DEEP) for name, value in vars(module).items() if name not in _INTERNAL}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            state[name] = self._print(tensor, 0)
        functions = [function for value in vars(module).values() for function in functions_of(value)]
        for name in _HOOKS:
            for hook in vars(module)[name].values():
                functions += functions_of(hook)
                state[f"{name} {id(hook)}"] = self._print(getattr(hook, "__self__", None), _DEEP)
        return {**classes[kind], **state, **self._values(functions)}

    def _state_of_class(self, kind: type) -> dict[str, Any]:
        """The state that all modules of a class share."""
        bases = own_classes(kind)
        state = {f"{base.__qualname__}.{name}": self._print(value, _DEEP) for base in bases for name, value in class_values(base)}
        return state | self._values([value for base in bases for value in vars(base).values() if type(value) is FunctionType])

    def _values(self, functions: list[FunctionType]) -> dict[str, Any]:
        return {name: self._print(value, _DEEP) for name, value in reached(functions) if not isinstance(value, nn.Module)}

    def _print(self, value: Any, depth: int) -> Any:
        """What tells a value from a changed one."""
        if isinstance(value, _SIMPLE):
            return value if value == value else "nan"  # only NaN differs from itself
        if isinstance(value, Tensor):
            return _TensorPrint(value, value.detach().clone() if self._copies else None)
        if isinstance(value, nn.Module):
            return ("module", id(value))
        if isinstance(value, random.Random):
            return ("random", hash(value.getstate()))
        if isinstance(value, torch.Generator):
            return ("random", bytes(value.get_state().numpy()))
        if isinstance(value, np.random.Generator | np.random.RandomState):
            return ("random", repr(value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state()))
        if isinstance(value, np.ndarray):
            return ("array", value.shape, hash(value.tobytes()))
        if isinstance(value, MethodType):
            return ("method", id(value.__func__), id(value.__self__))
        if isinstance(value, itertools.count | itertools.cycle):
            return repr(value)
        if isinstance(value, GeneratorType):
            frame = value.gi_frame
            return ("generator", id(value), frame and (frame.f_lasti, repr(frame.f_locals)))
        if isinstance(value, Iterator) and hasattr(value, "__length_hint__"):
            return ("iterator", id(value), length_hint(value))
        if depth > 0 and isinstance(value, list | tuple | set | frozenset | deque):
            return (type(value).__name__, len(value), tuple(self._print(member, depth - 1) for member in value))
        if depth > 0 and isinstance(value, dict):
            return ("dict", tuple((self._print(key, 1), self._print(member, depth - 1)) for key, member in value.items()))
        if depth > 1 and hasattr(value, "__dict__") and not isinstance(value, type | FunctionType | ModuleType):
            return (type(value), tuple((name, self._print(member, depth - 2)) for name, member in vars(value).items()))
        self._alive.append(value)
        return id(value)


class _TensorPrint:
    """Equal to that of the same tensor not written since, or of one with the same values."""

    def __init__(self, tensor: Tensor, copy: Tensor | None) -> None:
        self._tensor, self._version, self._copy = tensor, tensor._version, copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorPrint):
            return False
        if self._tensor is other._tensor and (self._copy is None or self._version == other._version):
            return self._version == other._version
        one, two = (self._tensor, other._tensor) if self._copy is None or other._copy is None else (self._copy, other._copy)
        return one.dtype == two.dtype and one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())

    __hash__ = None  # type: ignore[assignment]  # compared only


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state(legacy=True)), bytes(torch.get_rng_state().numpy())
