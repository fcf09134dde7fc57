"""What tells a network from a changed one, the same in every process: a hash of its state and of what it computes.

Read are parameters, buffers (also those that no state dict holds) and attributes of all its modules: numbers, words, tensors,
arrays, containers of them, and objects of other code than libraries by their own attributes. What a function of the user's file
finds elsewhere, such as a number that is read from a file when the file is imported, shows in the outputs for random inputs.
"""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgefold.models.loaded import in_eval_mode, quiet_errors
from edgefold.recipe.data import random_samples

_INTERNAL: Final = frozenset(vars(nn.Module())) | {"_call_impl"}
_SIMPLE: Final = (bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size, type(None))
_LIBRARIES: Final = frozenset({"torch", "numpy", "logging", "threading", "_thread", "io", "_io", "re", "weakref", "builtins"})


def module_digest(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """The SHA-256 of a network: of its state, and of its outputs for seeded random inputs of the shapes of ``inputs``."""
    with suppress(Exception):  # of anyone's code; what cannot be copied runs itself
        module = copy.deepcopy(module)
    digest = hashlib.sha256(_answers(module, inputs).encode())  # first: what a network keeps of a first run is there then
    reader = _Reader(module)
    for name, child in module.named_modules():
        digest.update(f"{name} {type(child).__qualname__}".encode())
        for key, value in sorted(reader.state(child).items()):
            digest.update(f"{name}.{key}={reader.text(value)};".encode())
    return digest.hexdigest()


def structure_digest(module: nn.Module) -> str:
    """The SHA-256 of the names, types and shapes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
    return digest.hexdigest()


class _Reader:
    """Values as text that is the same in every process; objects that were met before are told by when that was."""

    def __init__(self, module: nn.Module) -> None:
        self._met: dict[int, int] = {id(child): index for index, child in enumerate(module.modules())}
        self._alive: list[Any] = []  # no address may be used again

    def state(self, module: nn.Module) -> dict[str, Any]:
        """Parameters, buffers and attributes of one module, without its children."""
        own = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        return {**own, **module._parameters, **module._buffers}

    def text(self, value: Any) -> str:
        """A value in full, or its hash where it is large."""
        if isinstance(value, _SIMPLE) and not isinstance(value, enum.Enum):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Tensor):
            return _tensor(value)
        if id(value) in self._met:
            return f"met {self._met[id(value)]}"
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        try:
            return f"{type(value).__qualname__}({', '.join(self._parts(value))})"
        except RecursionError:
            return f"{type(value).__qualname__}(deep)"

    def _parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, enum.Enum):
            yield value.name
        elif isinstance(value, np.ndarray | np.generic):
            plain = np.ascontiguousarray(value)
            yield f"{plain.dtype} {plain.shape} "
            yield from self._all(plain.flat) if plain.dtype.hasobject else (hashlib.sha256(plain.tobytes()).hexdigest(),)
        elif isinstance(value, list | tuple | deque):
            yield from self._all(value)
        elif isinstance(value, set | frozenset):
            yield from sorted(self._all(value))
        elif isinstance(value, Mapping):
            yield from self._items(value)
        elif isinstance(value, nn.Module):
            yield from self._items({**self.state(value), **value._modules})
        elif isinstance(value, functools.partial):
            yield from self._all((value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            yield from self._all((value.__func__.__qualname__, value.__self__))
        elif isinstance(value, FunctionType):  # its code is part of the source
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            yield from self._all((value.__qualname__, value.__defaults__, value.__kwdefaults__, *cells))
        elif isinstance(value, type):
            yield value.__qualname__
        elif type(value).__module__.partition(".")[0] not in _LIBRARIES:
            slots = [name for base in type(value).__mro__ for name in _slots(base)]
            held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            yield from self._items({**held, **getattr(value, "__dict__", {})})

    def _all(self, values: Any) -> Iterator[str]:
        return (self.text(value) for value in values)

    def _items(self, values: Mapping[Any, Any]) -> Iterator[str]:
        return (f"{self.text(key)}: {self.text(value)}" for key, value in list(values.items()))


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _tensor(tensor: Tensor) -> str:
    """Type, shape and the hash of the values."""
    head = f"tensor {tensor.dtype} {tuple(tensor.shape)}"
    try:
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantized, or of another kind without plain bytes
        return head
    return f"{head} {hashlib.sha256(values).hexdigest()}"


def _answers(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Three figures of each output for random inputs; nothing where the network does not run on them.

    Three digits: what rounding in another order changes, with other threads, does not show.
    """
    (sample,) = random_samples(inputs, 1)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet_errors():
            torch.manual_seed(0)
            outputs = list(_tensors(in_eval_mode(module)(*sample)))
    except Exception:  # of anyone's code: the stages say what does not run
        return ""
    return " ".join(f"{tuple(output.shape)} {_figures(output)}" for output in outputs)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _figures(output: Tensor) -> str:
    """The root of the mean square, and two sums with seeded random weights."""
    if output.is_complex() or not output.numel():
        return ""
    flat = output.detach().double().flatten()
    weights = torch.randn(2, flat.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size = float(flat.square().mean().sqrt())
    return " ".join(f"{number:.2e}" for number in (size, *((weights @ flat) / flat.numel() ** 0.5).tolist()))
