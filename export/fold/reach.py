"""What code can reach beside its arguments: the values in closures, defaults, globals and classes that its names refer to."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy", "pytest", "_pytest"}) - {"__main__"}
_PLAIN = (bool, int, float, str, bytes, list, dict, set, tuple, bytearray)
_OF_PYTHON = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__", "__slots__"})


def reached(functions: Iterable[FunctionType]) -> Iterator[tuple[str, Any]]:
    """The values that the functions, and those that they call by name, read beside their arguments, by a name."""
    seen: set[int] = set()
    queue = list(functions)
    while queue:
        function = queue.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for name, value in names_of(function):
            found = functions_of(value)
            if found and not isinstance(value, MethodType | functools.partial):
                queue += [other for other in found if not is_library(other.__module__)]
            elif isinstance(value, type):
                if not is_library(value.__module__):
                    yield from ((f"{value.__qualname__}.{key}", member) for key, member in class_values(value))
            else:
                yield f"{function.__qualname__}: {name}", value


def class_values(kind: type) -> Iterator[tuple[str, Any]]:
    """The values that a class holds itself, its functions among them, by name."""
    return ((name, value) for name, value in list(vars(kind).items()) if name not in _OF_PYTHON and not _is_member(value))


def functions_of(value: Any) -> list[FunctionType]:
    """The Python functions in a callable: a function, a method or a partial one."""
    if isinstance(value, functools.partial):
        return functions_of(value.func)
    if isinstance(value, MethodType):
        value = value.__func__
    return [value] if isinstance(value, FunctionType) else []


def own_classes(kind: type) -> list[type]:
    """The classes that an object is of, other than those of PyTorch's layers and of Python."""
    return [base for base in kind.__mro__ if not base.__module__.startswith(("torch.nn.", "builtins"))]


def names_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function's names refer to: its closure, defaults, attributes and globals."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and not _is_empty(cell):
            yield name, cell.cell_contents
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    yield from ((name, value) for name, value in vars(function).items() if name != "__wrapped__")
    names = set(_global_names(code))
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            yield from _members(name, value, names)
        else:
            yield name, value
    for name in sorted(names):  # it may import them when it is called
        if name in sys.modules and name not in function.__globals__ and not is_library(name):
            yield from _members(name, sys.modules[name], names)


def _members(name: str, module: ModuleType, names: set[str], above: frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """What code with these names may read of a module, and of modules in it."""
    for other in sorted(names & vars(module).keys()):
        member = vars(module)[other]
        if isinstance(member, ModuleType):
            if not is_library(member.__name__) and member.__name__ not in above:
                yield from _members(f"{name}.{other}", member, names, above | {module.__name__})
        elif type(member) in _PLAIN or not is_library(module.__name__):
            yield f"{name}.{other}", member


def is_library(name: str | None) -> bool:
    """Whether a module is of the standard library, PyTorch or NumPy: what its code keeps is not a network's."""
    return (name or "").partition(".")[0] in _LIBRARIES


def _global_names(code: CodeType) -> Iterator[str]:
    """The names in a function and in those that are written inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _is_member(value: Any) -> bool:
    """Whether a class's value is the descriptor of a slot, which only tells where an object keeps it."""
    return type(value).__name__ in ("member_descriptor", "getset_descriptor", "_abc_data")


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (reading an empty cell raises)
    except ValueError:
        return True
    return False
