"""A copy of a module tree that shares every tensor and every plain layer: what fold may change without touching the model.

Containers and modules of own code are copied as shells, so that a child can be replaced and a call can be watched; layers of
torch.nn without children (an `nn.Conv2d`) are shared, however many there are. Modules that hide in plain Python lists,
tuples and dicts are found and copied as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def is_plain_layer(module: nn.Module) -> bool:
    """A layer of torch.nn as it comes: no children, no hooks, no parametrization, no changed forward."""
    state = vars(module)
    return (
        type(module).__module__.startswith("torch.nn.modules.")  # a parametrized layer is of a class made for it
        and not state["_modules"]
        and not (state["_forward_hooks"] or state["_forward_pre_hooks"])
        and "forward" not in state
    )


def shadow(module: nn.Module, copies: dict[int, nn.Module] | None = None) -> nn.Module:
    """The copy of ``module``.

    ``copies`` holds what is to stand in place of modules, by their ids; the copies that are made are added to it. What stands in
    place of a module that hides in a plain container gets registered too.
    """
    return _Copier({} if copies is None else copies).module(module)


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that ``module`` holds, registered ones first, then those in plain containers, by name."""
    if is_plain_layer(module):
        return
    seen = set()
    for name, child in module._modules.items():
        if child is not None:
            seen.add(id(child))
            yield name, child
    for name, value in vars(module).items():
        if name not in _INTERNAL:
            for path, child in _inside(name, value):
                if id(child) not in seen:
                    seen.add(id(child))
                    yield path, child


def size_of(module: nn.Module, memo: dict[int, int]) -> int:
    """The number of modules in the tree under ``module``."""
    if is_plain_layer(module):
        return 1
    if id(module) not in memo:
        memo[id(module)] = 1
        memo[id(module)] += sum(size_of(child, memo) for _, child in children(module))
    return memo[id(module)]


_INTERNAL = frozenset(vars(nn.Module())) | {"_call_impl"}


def is_module(value: Any) -> bool:
    """Whether a value is a module itself, and no weak proxy that only says so."""
    return issubclass(type(value), nn.Module)


def _inside(name: str, value: Any, above: tuple[int, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a value; ``above`` are the ids of the containers that it is in."""
    if is_module(value):
        yield name, value
    elif type(value) in (list, tuple, dict) and id(value) not in above:
        for key, member in value.items() if type(value) is dict else enumerate(value):
            if issubclass(type(member), nn.Module | list | tuple | dict):
                yield from _inside(f"{name}_{key}", member, (*above, id(value)))


class _Copier:
    """Copies each module once, so that shared modules stay shared."""

    def __init__(self, copies: dict[int, nn.Module]) -> None:
        self._copies = copies
        self._given = frozenset(copies)
        self._containers: dict[int, Any] = {}  # by the ids of what they are copies of

    def module(self, module: nn.Module) -> nn.Module:
        if is_plain_layer(module) or isinstance(module, torch.jit.ScriptModule):
            return module
        if id(module) in self._copies:
            return self._copies[id(module)]
        copy: nn.Module = object.__new__(type(module))  # an fx graph's own __new__ would make a class without its forward
        self._copies[id(module)] = copy
        state = vars(copy)
        state.update(vars(module))
        state.pop("_call_impl", None)  # the watch of a shadow's calls
        for name in _INTERNAL & state.keys():
            if isinstance(state[name], dict):
                state[name] = state[name].copy()
        for name, child in module._modules.items():
            copy._modules[name] = None if child is None else self.module(child)
        for name, value in vars(module).items():
            if name not in _INTERNAL:
                state[name] = self._value(value)
        self._register(module, copy)
        return copy

    def _register(self, module: nn.Module, copy: nn.Module) -> None:
        """Registers what was given in place of hidden modules."""
        if not self._given:
            return
        for name, child in children(module):
            if id(child) in self._given and name not in module._modules and name.isidentifier() and not hasattr(copy, name):
                copy._modules[name] = self._copies[id(child)]

    def _value(self, value: Any) -> Any:
        if is_module(value):
            return self.module(value)
        if isinstance(value, MethodType):
            owner: Any = value.__self__
            return MethodType(value.__func__, self.module(owner)) if is_module(owner) else value
        if type(value) is tuple:
            return tuple(map(self._value, value))
        if type(value) not in (list, dict):
            return value
        copy = self._containers.get(id(value))
        if copy is None:
            # Noted before it is filled: it may hold itself.
            copy = self._containers[id(value)] = type(value)()
            if type(value) is dict:
                copy.update((key, self._value(member)) for key, member in value.items())
            else:
                copy.extend(value if value and isinstance(value[0], Tensor) else map(self._value, value))
        return copy
