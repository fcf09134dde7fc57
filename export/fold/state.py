"""Whether running a module changes it: counters, caches, buffers, generators of random numbers.

A function with hidden state can be affine in each call and still be no fixed convolution. So all that the modules of own code
reach is noted before and after the runs (`edgefold.export.fold.fingerprint`): attributes, objects of foreign classes, the values
of tensors, random generators, and what methods, hooks and functions refer to (`edgefold.export.fold.reach`). What they call is
watched while they run (`edgefold.export.fold.calls`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import modules

from edgefold.export.fold.fingerprint import Fingerprints, TooManyError
from edgefold.export.fold.reach import class_values, functions_of, is_library, own_classes, reached
from edgefold.export.fold.shadow import _INTERNAL

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")  # run with each module


class Snapshot:
    """The state of modules at one moment.

    With ``copies`` of its tensors, one that is written again with the same values counts as unchanged. With ``caches`` the
    values that functions have cached are part of it.
    """

    def __init__(self, modules: Iterable[nn.Module], *, copies: bool = False, caches: bool = False) -> None:
        self._modules = {id(module): module for module in modules}
        self._copies, self._caches = copies, caches
        reader = Reader(self._modules, copies, caches)
        self._before = {key: reader.state(module) for key, module in self._modules.items()}
        self._kept = reader
        self._random = _random_state()

    @property
    def unseen(self) -> dict[int, str]:
        """The modules (by id) of which not all could be read, with the reason."""
        return self._kept.unseen

    @property
    def cached(self) -> set[int]:
        """The modules (by id) that reach functions with a cache."""
        return self._kept.cached

    def changed(self, only: Iterable[int] | None = None) -> dict[int, str]:
        """The modules (by id; all, or ``only`` these) whose state is another now, with what changed."""
        found = {}
        reader = Reader(self._modules, self._copies, self._caches)
        for key in self._before if only is None else (key for key in only if key in self._before):
            before, after = self._before[key], reader.state(self._modules[key])
            for name in {**before, **after}:
                if before.get(name, "absent") != after.get(name, "absent"):
                    found[key] = f"changes its state between calls ('{name}')"
        return found

    def draws_random_numbers(self) -> bool:
        """Whether Python's, NumPy's or PyTorch's global generator has moved."""
        return _random_state() != self._random

    def draws_outside_of_the_graph(self) -> bool:
        """Whether Python's or NumPy's global generator has moved: a captured graph would hold one draw for ever."""
        return _random_state()[:2] != self._random[:2]


class Reader:
    """Reads the states of modules at one moment."""

    def __init__(self, modules: dict[int, nn.Module], copies: bool, caches: bool) -> None:
        self._known = set(modules)
        self._options = {"copies": copies, "caches": caches}
        self._alive: list[Fingerprints] = []
        self.unseen: dict[int, str] = {}
        self.cached: set[int] = set()

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The prints of what one module reaches, by name."""
        prints = Fingerprints(self._known, **self._options)
        self._alive.append(prints)
        state: dict[str, Any] = {}
        try:
            for name, value in _values(module):
                state[name] = prints.of(value)
        except TooManyError:
            state = {}
        if prints.unseen:
            self.unseen[id(module)] = prints.unseen
        if prints.cached:
            self.cached.add(id(module))
        return state


def _values(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """What a module reaches: attributes, parameters, buffers, hooks, its classes and what their functions refer to."""
    bases = [base for base in own_classes(type(module)) if not is_library(base.__module__)]
    functions: list[FunctionType] = []
    for base in bases:
        for name, value in class_values(base):
            found = functions_of(value)
            functions += found
            if not found:
                yield f"{base.__qualname__}.{name}", value
    for name, value in vars(module).items():
        if name not in _INTERNAL:
            functions += functions_of(value)
            # What a function refers to follows by its own name.
            yield name, value.__code__ if isinstance(value, FunctionType) else value
    yield from module._parameters.items()
    yield from module._buffers.items()
    held = (*((name, vars(module)[name]) for name in _HOOKS), *((name, vars(modules.module)[name]) for name in _GLOBAL_HOOKS))
    for name, hooks in held:
        for hook in hooks.values():
            functions += functions_of(hook)
            yield f"{name} {id(hook)}", hook.__code__ if isinstance(hook, FunctionType) else hook
    yield from reached(functions)


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state(legacy=True)), bytes(torch.get_rng_state().numpy())
