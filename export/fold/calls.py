"""What foreign code calls while it is under proof: clocks, the system's randomness, threads, files, C code that keeps state.

Such calls leave no trace in what the code reaches (`edgefold.export.fold.state`), and may give something else in every call. A
profile function sees each call of a C function from Python. In foreign code the rule is a list of what is allowed, so that
what is not known ends the proof: functions of modules without state, and methods of objects whose state is compared before
and after. In the standard library and NumPy, which foreign code may go through, the rule is a list of the ways out of the
process. PyTorch's own Python code is trusted.
"""

from __future__ import annotations

import array
import contextvars
import datetime
import gc
import random
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, GeneratorType, MappingProxyType, ModuleType
from typing import Any, Final, Protocol

from torch import nn

from edgefold.export.fold.shadow import is_plain_layer


class Refuse(Protocol):
    """Takes the reason, and whether the call draws random numbers."""

    def __call__(self, reason: str, *, chance: bool) -> None:
        """Ends what is under proof."""


class Sets(Protocol):
    """Takes the attribute of a module that is about to be set."""

    def __call__(self, module: nn.Module, name: str) -> None:
        """Notes it."""


_TRUSTED: Final = frozenset({"torch", "torchvision"})
_NUMERICAL: Final = frozenset({"numpy", "scipy"})
_PURE_MODULES: Final = frozenset(
    {
        *("builtins", "math", "cmath", "_operator", "itertools", "_functools", "_collections", "_abc", "_warnings", "_sre"),
        *("_struct", "_bisect", "_heapq", "_statistics", "_json", "_copyreg", "_string", "_types", "_weakref", "binascii"),
        *_TRUSTED,
        *_NUMERICAL,
    }
)
_IMPURE: Final = frozenset({"id", "open", "input", "breakpoint", "globals", "fromfile"})  # of `builtins` and of NumPy
_SEEN: Final[tuple[type, ...]] = (
    *(list, dict, tuple, set, frozenset, str, bytes, bytearray, int, float, complex, range, slice, type(None)),
    *(deque, MappingProxyType, array.array, GeneratorType, contextvars.ContextVar, random.Random, re.Pattern, re.Match),
    *(type({}.keys()), type({}.values()), type({}.items()), datetime.timedelta),
)
_WAYS_OUT: Final = frozenset(
    {
        *("urandom", "getrandom", "generate_time_safe", "UuidCreate", "open"),
        *("start_new_thread", "start_joinable_thread", "fork", "fork_exec", "posix_spawn", "putenv", "unsetenv"),
    }
)
_READS_CODE: Final = frozenset({"tokenize", "linecache", "importlib", "_frozen_importlib", "_frozen_importlib_external"})
_STATEFUL_PACKAGES: Final = frozenset(
    {
        *("threading", "_threading_local", "queue", "concurrent", "multiprocessing", "asyncio", "sched", "signal", "subprocess"),
        *("socket", "select", "selectors", "http", "urllib", "ftplib", "sqlite3", "shelve", "dbm", "mmap", "ctypes"),
        *("secrets", "uuid", "tempfile", "pathlib", "shutil", "glob", "fileinput", "io"),
    }
)
_FOREIGN, _STANDARD, _OURS = range(3)
_SETS_ATTRIBUTE: CodeType = nn.Module.__setattr__.__code__
_MAKES_LOCK = "RLock"  # every generator of NumPy has one


@contextmanager
def calls_watched(refuse: Refuse, sets: Sets) -> Iterator[None]:
    """Calls ``refuse`` with the reason at each call that may give something else every time, or keep state that is not seen.

    ``sets`` is told of each attribute of a module that foreign code sets.
    """
    before: Any
    before, collects = sys.getprofile(), gc.isenabled()
    watch = _Calls(refuse, sets)
    gc.disable()  # a collection would run callbacks and finalizers of other code in the midst of what is watched
    sys.setprofile(watch.see)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            before.enable()  # cProfile's object is no profile function
        if collects:
            gc.enable()


def is_pure(function: Any) -> bool:
    """Whether a C function (or a method bound to its object) keeps no state but what is compared before and after."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, ModuleType):
        return _is_pure_module(owner.__name__) and function.__name__ not in _IMPURE
    if isinstance(owner, random.SystemRandom):
        return False
    if isinstance(owner, _SEEN):
        return True
    kind = owner if isinstance(owner, type) else type(owner)
    if isinstance(owner, type) and issubclass(owner, _SEEN):
        return True
    return _is_pure_module(kind.__module__) or _is_pure_module(getattr(function, "__module__", None) or "")


class _Calls:
    def __init__(self, refuse: Refuse, sets: Sets) -> None:
        self._refuse, self._sets = refuse, sets
        self._kinds: dict[int, int] = {}  # globals of a module -> whose code it is

    def see(self, frame: FrameType, event: str, arg: Any) -> None:
        """The profile function."""
        if event == "c_call":
            kind = self._kinds.get(id(frame.f_globals))
            if kind is None:
                kind = self._kind(frame)
            if kind == _OURS:
                return
            if kind == _FOREIGN:
                if not is_pure(arg):
                    self._stop(arg)
            elif arg.__name__ in _WAYS_OUT:
                reads_code = arg.__name__ == "open" and _package(frame) in _READS_CODE
                if not reads_code and self._is_asked_by_foreign_code(frame):
                    self._stop(arg)
            elif arg.__name__ == "seed" and frame.f_code.co_name == "seed" and frame.f_locals.get("a", 0) is None:
                self._refuse("draws random numbers of the system (random.Random without a seed)", chance=True)
        elif event == "call" and (caller := frame.f_back) is not None:
            kind = self._kinds.get(id(caller.f_globals))
            if (self._kind(caller) if kind is None else kind) != _FOREIGN:
                return
            if frame.f_code is _SETS_ATTRIBUTE:
                module, name = frame.f_locals["self"], frame.f_locals["name"]
                self._sets(module, name)
                if is_plain_layer(module):
                    self._refuse(f"sets an attribute of a layer ('{name}')", chance=False)
            elif frame.f_code.co_name != _MAKES_LOCK and self._kind(frame) == _STANDARD and _package(frame) in _STATEFUL_PACKAGES:
                name = f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"
                self._refuse(f"calls {name}, whose state cannot be seen", chance=False)

    def _is_asked_by_foreign_code(self, frame: FrameType | None) -> bool:
        """Whether a library runs for foreign code, and not for PyTorch's."""
        while frame is not None and self._kind(frame) == _STANDARD:
            frame = frame.f_back
        return frame is None or self._kind(frame) == _FOREIGN

    def _stop(self, function: Any) -> None:
        reason = f"calls {_name(function)}, which may give something else in every call"
        self._refuse(reason, chance=function.__name__ in ("urandom", "getrandom"))

    def _kind(self, frame: FrameType) -> int:
        key = id(frame.f_globals)
        kind = self._kinds.get(key)
        if kind is None:
            name = str(frame.f_globals.get("__name__", ""))
            package = name.partition(".")[0]
            if package in _TRUSTED or name.startswith("edgefold.export."):
                kind = _OURS
            else:
                library = package in sys.stdlib_module_names or package in _NUMERICAL
                kind = _STANDARD if library and package != "__main__" else _FOREIGN
            self._kinds[key] = kind
        return kind


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_pure_module(name: str) -> bool:
    return name.partition(".")[0] in _PURE_MODULES


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, ModuleType):
        return f"{owner.__name__}.{function.__name__}"
    kind = owner if isinstance(owner, type) else type(owner)
    return f"{kind.__module__}.{kind.__qualname__}.{function.__name__}"
