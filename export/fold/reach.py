"""What code can reach beside its arguments: the values in closures, globals and classes that a function's names refer to."""

from __future__ import annotations

import functools
import itertools
import random
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FAR = 200  # functions that are followed from one module; foreign code may call half of a library

_KINDS = (
    *(int, float, list, dict, set, Tensor, np.ndarray),
    *(random.Random, torch.Generator, np.random.Generator, np.random.RandomState, itertools.count, itertools.cycle),
)
_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy"})


def reached(functions: Iterable[FunctionType]) -> Iterator[tuple[str, Any]]:
    """The values that the functions, and those that they call, read from closures, globals and classes, by a name."""
    seen: set[int] = set()
    queue = list(functions)
    while queue and len(seen) < _FAR:
        function = queue.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for name, value in _names(function):
            found = functions_of(value)
            if found:
                queue += [other for other in found if not _is_library(other.__module__)]
            elif isinstance(value, type):
                if not _is_library(value.__module__):
                    yield from ((f"{value.__qualname__}.{key}", member) for key, member in class_values(value))
            elif isinstance(value, _KINDS):
                yield f"{function.__qualname__}: {name}", value


def class_values(kind: type) -> Iterator[tuple[str, Any]]:
    """The values that a class holds itself, by name."""
    return ((name, value) for name, value in vars(kind).items() if isinstance(value, _KINDS) and not name.startswith("__"))


def functions_of(value: Any) -> list[FunctionType]:
    """The Python functions in a callable: a function, a method or a partial one."""
    if isinstance(value, functools.partial):
        return functions_of(value.func)
    if isinstance(value, MethodType):
        value = value.__func__
    return [value] if isinstance(value, FunctionType) else []


def own_classes(kind: type) -> list[type]:
    """The classes that a module is of, other than PyTorch's own."""
    return [base for base in kind.__mro__ if not base.__module__.startswith(("torch.nn.", "builtins"))]


def _names(function: FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and not _is_empty(cell):
            yield name, cell.cell_contents
    names = set(_global_names(code))
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield name, value
        elif not _is_library(value.__name__):
            yield from ((f"{name}.{other}", vars(value)[other]) for other in sorted(names & vars(value).keys()))


def _global_names(code: CodeType) -> Iterator[str]:
    """The names in a function and in those that are written inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _is_library(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _LIBRARIES


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (reading an empty cell raises)
    except ValueError:
        return True
    return False
