"""What torch's converters look up anew for each file is looked up once a process.

An export of a small network spends most of its time on the same tables: all operators of torch that a converter may decompose,
walked once for each namespace and each call; a kernel for each of these and each of eight dispatch keys; the signatures of all
functions of onnxscript, parsed from their sources. The tables are the same for each file: a suite that writes hundreds of files
need not make them again and again. Files are the same, byte by byte (``test_lookups.py``).

Where another version of torch has other internals, its lookups are left as they are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any


@cache
def look_up_once() -> None:
    """Changes torch in this process, for good. Does nothing the second time."""
    for change in (_operators_once, _kernels_plainly, _onnx_functions_once):
        with suppress(ImportError, AttributeError):
            change()


def _operators_once() -> None:
    """Operators appear when a module or a library is loaded or registers some; until then there is nothing new to find."""
    import torch

    utils: Any = importlib.import_module("torch._export.utils")
    library: Any = torch.library
    original: Callable[[], None] = utils._materialize_cpp_cia_ops
    seen: tuple[int, ...] = ()

    def materialize() -> None:
        nonlocal seen
        now = (len(library._defs), len(library._impls), len(sys.modules), len(torch.ops.loaded_libraries))
        if now != seen:
            original()
            seen = now

    utils._materialize_cpp_cia_ops = materialize


def _kernels_plainly() -> None:
    """Without the types of two annotations for each kernel, and with one function an operator that says it has no gradient."""
    ops: Any = importlib.import_module("torch._ops")
    exported: Any = importlib.import_module("torch.export.exported_program")
    original: Callable[..., Any] = ops.OperatorBase.py_impl
    keys: Any = ops.DispatchKey

    def py_impl(operator: Any, key: Any) -> Any:
        if type(key) is not keys or key == keys.Python or key in operator.py_kernels:
            return original(operator, key)

        def register(kernel: Any) -> Any:
            operator.py_kernels[key] = kernel
            operator._dispatch_cache.clear()
            return kernel

        return register

    exported.autograd_not_implemented = cache(exported.autograd_not_implemented)
    ops.OperatorBase.py_impl = py_impl


def _onnx_functions_once() -> None:
    """The registry of one opset, of which each export gets a copy."""
    registration: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
    registry: Any = registration.ONNXRegistry
    made = cache(registry.from_torchlib)

    def from_torchlib(**options: int) -> Any:
        origin, copied = made(**options), registry()
        copied._opset_version = origin._opset_version
        copied.functions = {target: list(functions) for target, functions in origin.functions.items()}
        return copied

    registry.from_torchlib = staticmethod(from_torchlib)
