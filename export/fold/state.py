"""Whether running a module changes it: counters, caches, buffers, generators of random numbers.

A function with hidden state can be affine in each call and still be no fixed convolution. So the plain Python state of every
module of own code is noted before and after the runs: numbers, containers, the identity and version of tensors, random
generators, and what its methods reach through closures and globals.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgefold.export.fold.shadow import _INTERNAL

_DEEP = 4  # nested containers and objects are followed so far
_SIMPLE = (int, float, complex, str, bytes, bool, type(None))


class Snapshot:
    """The state of modules at one moment."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._alive: list[Any] = []  # keeps what is compared by identity from being replaced at the same address
        self._before = [self._state(module) for module in self._modules]
        self._random = _random_state()

    def changed(self) -> dict[int, str]:
        """The modules (by id) whose state is another now, with what changed."""
        found = {}
        for module, before in zip(self._modules, self._before, strict=True):
            after = self._state(module)
            for name in before.keys() | after.keys():
                if before.get(name, "absent") != after.get(name, "absent"):
                    found[id(module)] = f"changes its state between calls ('{name}')"
        return found

    def draws_random_numbers(self) -> bool:
        """Whether Python's, NumPy's or PyTorch's global generator has moved."""
        return _random_state() != self._random

    def _state(self, module: nn.Module) -> dict[str, Any]:
        state = {name: self._print(value, _DEEP) for name, value in vars(module).items() if name not in _INTERNAL}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            state[name] = self._print(tensor, 0)
        for function in _functions(type(module)):
            for name, value in _reached(function):
                if not isinstance(value, nn.Module):
                    state[f"{function.__qualname__}: {name}"] = self._print(value, _DEEP)
        return state

    def _print(self, value: Any, depth: int) -> Any:
        """What tells a value from a changed one."""
        if isinstance(value, _SIMPLE):
            return value
        if isinstance(value, Tensor):
            return _TensorPrint(value)
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
        if isinstance(value, itertools.count | itertools.cycle):
            return repr(value)
        if depth > 0 and isinstance(value, list | tuple | set | frozenset):
            return (type(value).__name__, len(value), tuple(self._print(member, depth - 1) for member in value))
        if depth > 0 and isinstance(value, dict):
            return ("dict", tuple((self._print(key, 1), self._print(member, depth - 1)) for key, member in value.items()))
        if depth > 1 and hasattr(value, "__dict__") and not isinstance(value, type | FunctionType | ModuleType):
            return (id(value), tuple((name, self._print(member, depth - 2)) for name, member in vars(value).items()))
        self._alive.append(value)
        return id(value)


class _TensorPrint:
    """Equal to that of the same tensor not written since, or of another one with the same values."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorPrint):
            return False
        if self._tensor is other._tensor:
            return self._version == other._version
        return self._tensor.dtype == other._tensor.dtype and torch.equal(self._tensor, other._tensor)

    __hash__ = None  # type: ignore[assignment]  # compared only


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state(legacy=True)), bytes(torch.get_rng_state().numpy())


def _functions(kind: type) -> list[FunctionType]:
    """The methods of a module's class that are not PyTorch's own."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("torch.nn.", "builtins"))]
    return [value for base in own for value in vars(base).values() if isinstance(value, FunctionType)]


def _reached(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """The values that a function reads from its closure and from the globals of its module."""
    assert isinstance(function, FunctionType)
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found = [(name, cell.cell_contents) for name, cell in cells if name != "__class__" and not _is_empty(cell)]
    names = [name for name in code.co_names if name in function.__globals__]
    found += [(name, function.__globals__[name]) for name in names]
    kinds = (int, float, list, dict, set, Tensor, np.ndarray, random.Random, torch.Generator, np.random.Generator)
    return [(name, value) for name, value in found if isinstance(value, (*kinds, itertools.count))]


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (reading an empty cell raises)
    except ValueError:
        return True
    return False
