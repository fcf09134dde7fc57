"""What tells a Python value from a changed one, however deep the change: all that can be reached from it.

A print is made of tuples and simple values, and two prints of one moment each are compared with ``==``. Values of Python's own
kinds are read by their contents, objects by their attributes and their class, functions by what they refer to. What belongs to
PyTorch, NumPy or the standard library's machinery is told by its identity.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from operator import length_hint
from types import BuiltinFunctionType, CellType, FunctionType, GeneratorType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgefold.export.fold.calls import is_pure
from edgefold.export.fold.reach import class_values, is_library, names_of, own_classes
from edgefold.export.fold.shadow import _INTERNAL, is_plain_layer

_MANY: Final = 20_000  # containers, objects and functions that are read for one snapshot
_SIMPLE = (int, float, complex, str, bytes, bool, range, slice, torch.dtype, torch.device, np.generic, type(None))
_SEQUENCES = (list, tuple, set, frozenset, deque)
_UNREAD: Final = frozenset(
    {
        *("torch", "numpy", "logging", "threading", "concurrent", "_thread", "io", "_io", "re", "weakref"),
        *("pytest", "_pytest", "pluggy"),  # stand behind each `assert` in code that a test holds
    }
)
# What the sizes of an exported program are written in: immutable, but each keeps what it has worked out about itself.
_EXPRESSION: Final = ("sympy.core.basic", "Basic")
_Cached = type(functools.lru_cache(lambda: None))
_HEAP_TYPE: Final = 1 << 9
_BUSY: Final = ("cycle",)


class Fingerprints:
    """The prints of one moment.

    Modules whose ids are in ``known`` are read by others. With ``copies`` a tensor that is written again with the same values
    counts as unchanged; with ``caches`` the values in functions with a cache are read, which fill in a first call.
    """

    def __init__(self, known: set[int], *, copies: bool, caches: bool) -> None:
        self._known, self._copies, self._caches = known, copies, caches
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # what is told by its identity must not be replaced at the same address
        self._left = _MANY
        self.unseen = ""  # why what was read since this was set is not all; empty if it is
        self.cached = False  # whether a function with a cache was met

    def of(self, value: Any) -> Any:
        """The print of a value."""
        if isinstance(value, _SIMPLE) and type(value).__module__ != "enum":
            return value if value == value else "nan"  # only NaN differs from itself
        key = id(value)
        found = self._memo.get(key)
        if found is None:
            self._memo[key] = _BUSY
            self._alive.append(value)
            try:
                found = self._read(value)
            except RecursionError:
                self.unseen = "holds objects that are nested too deep to be compared"
                found = ("deep",)
            self._memo[key] = found
        return found

    def _read(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            own = vars(value) if type(value) in (Tensor, nn.Parameter) else {}
            print_ = TensorPrint(value, value.detach().clone() if self._copies else None)
            return (print_, self._items(own)) if own else print_
        if isinstance(value, nn.Module):
            if id(value) in self._known or is_plain_layer(value) or isinstance(value, torch.jit.ScriptModule):
                return ("module", id(value))
            return self._module(value)
        if isinstance(value, np.ndarray):
            return ("array", value.shape, self._all(value.flat) if value.dtype.hasobject else hash(value.tobytes()))
        for kinds, read in _READERS:
            if isinstance(value, kinds):
                return read(self, value)
        return self._opaque(value)

    def _module(self, module: nn.Module) -> Any:
        state = {name: member for name, member in vars(module).items() if name not in _INTERNAL}
        held = {**module._parameters, **module._buffers, **module._modules, **state}
        return ("module", id(module), self._items(held), self._type(type(module)))

    def _all(self, values: Any) -> tuple[Any, ...]:
        return tuple(self.of(member) for member in values)

    def _items(self, values: Mapping[Any, Any]) -> tuple[Any, ...]:
        return tuple((self.of(key), self.of(member)) for key, member in list(values.items()))

    def _sequence(self, value: Any) -> Any:
        self._count()
        return (type(value).__name__, self._all(value), self._attributes(value))

    def _mapping(self, value: Any) -> Any:
        self._count()
        return (type(value).__name__, self._items(value), self._attributes(value))

    def _method(self, value: MethodType) -> Any:
        return ("method", self.of(value.__func__), self.of(value.__self__))

    def _partial(self, value: functools.partial[Any]) -> Any:
        if isinstance(value.func, BuiltinFunctionType) and not is_pure(value.func):
            self.unseen = f"holds {value.func.__module__}.{value.func.__qualname__}, which may give something else in every call"
        return ("partial", self.of(value.func), self._all(value.args), self._items(value.keywords))

    def _function(self, function: FunctionType) -> Any:
        if is_library(function.__module__):
            return ("function", id(function))
        self._count()
        return ("function", id(function.__code__), tuple((name, self.of(value)) for name, value in names_of(function)))

    def _cache(self, value: Any) -> Any:
        self.cached = True
        held = gc.get_referents(value) if self._caches else []
        return ("cache", self.of(value.__wrapped__), {id(one): self.of(one) for one in held if one is not type(value)})

    def _type(self, kind: type) -> Any:
        return ("type", id(kind), tuple(self._class(base) for base in own_classes(kind)))

    def _class(self, kind: type) -> Any:
        if is_library(kind.__module__):
            return id(kind)
        self._count()
        return (id(kind), tuple((name, self.of(value)) for name, value in class_values(kind)))

    def _iterator(self, value: Any) -> Any:
        if isinstance(value, GeneratorType):
            frame = value.gi_frame
            return ("generator", id(value), frame and (frame.f_lasti, self._items(frame.f_locals)))
        kind = type(value)
        if kind.__module__ in ("builtins", "itertools"):  # elsewhere this may run any code, and copy or close a file
            with suppress(TypeError, AttributeError):
                return ("iterator", id(value), self._all(value.__reduce__()[1:]))
        if hasattr(kind, "__length_hint__"):
            return ("iterator", id(value), length_hint(value))
        return self._opaque(value)

    def _buffer(self, value: Any) -> Any:
        return (type(value).__name__, hash(bytes(value)))

    def _opaque(self, value: Any) -> Any:
        kind = type(value)
        package = str(kind.__module__).partition(".")[0]
        if any((base.__module__, base.__name__) == _EXPRESSION for base in kind.__mro__):
            return ("expression", id(value))
        if any(base.__name__ in ("CFuncPtr", "_CFuncPtr") for base in kind.__mro__):
            self.unseen = "holds a function of a C library, which may keep state"
        if package in _UNREAD:
            return ("object", id(value))
        try:
            with memoryview(value) as view:
                return (kind.__name__, hash(view.tobytes()))
        except (TypeError, ValueError, BufferError):
            self._count()
        written = all(base.__flags__ & _HEAP_TYPE for base in kind.__mro__[:-1])  # in Python: no more than its attributes
        return ("object", 0 if written else id(value), self._attributes(value), self._type(kind))

    def _attributes(self, value: Any) -> Any:
        """The attributes of an object, in its dict and in slots."""
        found = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for base in type(value).__mro__:
            names = vars(base).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                if name not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                    found[mangled] = getattr(value, mangled)
        return self._items(found)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.unseen = "reaches more objects than are compared"
            raise TooManyError


class TooManyError(Exception):
    """More can be reached than is compared."""


class TensorPrint:
    """Equal to that of the same tensor not written since, or of one with the same values."""

    def __init__(self, tensor: Tensor, copy: Tensor | None) -> None:
        self._tensor, self._version, self._copy = tensor, tensor._version, copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorPrint):
            return False
        if self._tensor is other._tensor and (self._copy is None or self._version == other._version):
            return self._version == other._version
        one, two = (self._tensor, other._tensor) if self._copy is None or other._copy is None else (self._copy, other._copy)
        return one.dtype == two.dtype and one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())

    __hash__ = None  # type: ignore[assignment]  # compared only


def _read_generator(_: Fingerprints, value: Any) -> Any:
    return ("random", bytes(value.get_state().numpy()))


def _read_numpy_random(_: Fingerprints, value: Any) -> Any:
    state = value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state()
    return ("random", repr(state))


def _read_random(_: Fingerprints, value: Any) -> Any:
    # The system's randomness has no state; drawing from it is seen when it is done.
    return ("random", id(value) if isinstance(value, random.SystemRandom) else hash(value.getstate()))


def _is_iterator(value: Any) -> bool:
    return isinstance(value, Iterator) and not hasattr(value, "__dict__")


_READERS: Final[tuple[tuple[Any, Callable[[Fingerprints, Any], Any]], ...]] = (
    (_SEQUENCES, Fingerprints._sequence),
    (Mapping, Fingerprints._mapping),
    (FunctionType, Fingerprints._function),
    (MethodType, Fingerprints._method),
    (functools.partial, Fingerprints._partial),
    (_Cached, Fingerprints._cache),
    (BuiltinFunctionType, lambda prints, value: ("builtin", value.__qualname__, prints.of(value.__self__))),
    (type, Fingerprints._type),
    (ModuleType, lambda prints, value: ("module", id(value))),
    ((classmethod, staticmethod), lambda prints, value: ("bound", prints.of(value.__func__))),
    (property, lambda prints, value: ("property", prints._all((value.fget, value.fset)))),
    (functools.cached_property, lambda prints, value: ("property", prints.of(value.func))),
    (CellType, lambda prints, value: ("cell", prints.of(value.cell_contents))),
    (random.Random, _read_random),
    (torch.Generator, _read_generator),
    ((np.random.Generator, np.random.RandomState), _read_numpy_random),
    (bytearray, Fingerprints._buffer),
    (SimpleNamespace, lambda prints, value: ("namespace", prints._attributes(value))),
    (contextvars.ContextVar, lambda prints, value: ("variable", prints.of(value.get(None)))),
    (threading.local, lambda prints, value: ("local", prints._items(vars(value)))),
    (weakref.ReferenceType, lambda prints, value: ("reference", prints.of(value()))),
    ((itertools.count, itertools.cycle), lambda prints, value: repr(value)),
    ((GeneratorType, Iterator), Fingerprints._iterator),
)
