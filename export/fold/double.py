"""Running float32 code in float64 without a copy of it.

Under this mode every op gets its float32 operands as float64, and new tensors are made in float64. The code is given a
float64 input; its weights stay where they are, in parameters or in plain Python lists.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from edgefold.export.fold.admission import operands, written_positions
from edgefold.export.fold.modes import DispatchMode

_FACTORIES = frozenset(
    {
        *("zeros", "ones", "full", "empty", "empty_strided", "eye", "arange", "linspace", "scalar_tensor"),
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    }
)


class Double(DispatchMode):
    """Evaluates in float64 what depends on a float64 input."""

    def __init__(self) -> None:
        super().__init__()
        self._convolutions = _Convolutions()

    def __enter__(self) -> Double:
        super().__enter__()
        self._convolutions.__enter__()  # type: ignore[no-untyped-call]  # torch
        return self

    def __exit__(self, *error: Any) -> None:
        self._convolutions.__exit__(*error)  # type: ignore[no-untyped-call]  # torch
        super().__exit__(*error)

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op._opname in _FACTORIES:
            out = op(*args, **kwargs)
            return out.double() if isinstance(out, Tensor) and out.dtype == torch.float32 else out
        if op._opname == "_to_copy" and kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        if not _is_view(op) or any(_is_double(value) for value in operands((*args, *kwargs.values()))):
            keep = {index for index, _ in written_positions(op)}
            args = [value if index in keep else _widen(value) for index, value in enumerate(args)]
            kwargs = {key: _widen(value) for key, value in kwargs.items()}
        return op(*args, **kwargs)


class _Convolutions(TorchFunctionMode):
    """Convolutions compare the types of their operands before they reach the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and getattr(func, "__name__", "").startswith("conv"):
            args = [_widen(value) for value in args]
            kwargs = {key: _widen(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


@cache
def _is_view(op: OpOverload) -> bool:
    """Whether the result shares the memory of an operand, which a wider copy of the operand would break."""
    return any(argument.alias_info and not argument.alias_info.is_write for argument in op._schema.arguments)


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if isinstance(value, list | tuple):
        return [_widen(member) for member in value]
    return value
