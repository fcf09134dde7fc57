"""The affine proof: run the code once, and follow each tensor that depends on the input through every op.

A `Proof` is a dispatch mode. It keeps one or more open `Scope`s, each a piece of the network (a module's call) with one input
tensor; a scope stays sound as long as each op on its dependent tensors is admitted (`edgefold.export.fold.admission`), nothing
random is drawn, and nothing that existed before the scope is written. One run of the network thus judges all its
modules. Dependence is kept by storage, so that views and writes into views are followed.

Python code can also read a tensor's memory without an op (``numpy()``, ``tolist()``, ``data_ptr()``): `Reads`, a function
mode, ends the scopes that do so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edgefold.export.fold.admission import admit, is_random, is_shape_only, operands, written_positions
from edgefold.export.fold.cost import macs_of
from edgefold.export.fold.field import Field, advance, join, whole

_PRUNE_AT = 50_000
_ORIGIN = "uses a tensor of unknown origin: neither a parameter or buffer nor made by an op in its call"


@dataclass(slots=True, eq=False)
class Scope:
    """One call under proof: what was found about it so far. ``reason`` is empty while it may be affine."""

    source: Tensor
    reason: str = ""
    start: int = 0
    marks: dict[int, Field | None] = field(default_factory=dict)  # storage -> receptive field
    macs: int = 0
    ops: int = 0  # ops on dependent tensors
    computed: int = 0  # ops on constants: a mask times a weight, say
    convolutions: int = 0
    foreign: dict[int, StorageWeakRef] = field(default_factory=dict)  # constants that neither are parameters nor come from an op

    @property
    def sound(self) -> bool:
        """Whether nothing was refused."""
        return not self.reason


class Proof(TorchDispatchMode):
    """Follows the open scopes through all ops."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Scope] = []
        self._clock = 0
        self._born: dict[int, int] = {}  # storage made by an op -> when
        self._refs: dict[int, StorageWeakRef] = {}  # keeps the addresses of known storages from being used again
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._reads = Reads(self)
        self._limit = _PRUNE_AT

    def __enter__(self) -> Proof:
        super().__enter__()
        self._reads.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reads.__exit__(*error)
        super().__exit__(*error)
        for tensor, before in self._saved.values():
            tensor.copy_(before)
        self._saved.clear()

    @contextmanager
    def scope(self, source: Tensor) -> Iterator[Scope]:
        """Opens a scope for a call on ``source`` of shape (batch, channels, *space)."""
        scope = Scope(source, start=self._clock)
        self._clock += 1
        with torch._C.DisableTorchFunction():
            scope.marks[self._hold(source)] = whole(source.shape[1], source.ndim - 2) if source.ndim > 2 else None
        self.open.append(scope)
        try:
            yield scope
        finally:
            if scope in self.open:
                self.open.remove(scope)
            if scope.sound and any(reference.expired() for reference in scope.foreign.values()):
                self.refuse((scope,), _ORIGIN)

    def field_of(self, scope: Scope, tensor: Tensor) -> Field | None:
        """The receptive field of a tensor in a scope, if it is known."""
        with torch._C.DisableTorchFunction():
            return scope.marks.get(_storage(tensor))

    def depends(self, scope: Scope, tensor: Tensor) -> bool:
        """Whether a tensor depends on the scope's input."""
        with torch._C.DisableTorchFunction():
            return _storage(tensor) in scope.marks

    def refuse(self, scopes: Iterable[Scope], reason: str) -> None:
        """Ends scopes for a reason."""
        for scope in scopes:
            scope.reason = reason
            scope.marks.clear()
        self.open = [scope for scope in self.open if scope.sound]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # saves a third of the time of a call; nothing is compiled here

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # our own reads are not the network's
            return self._follow(op, args, kwargs or {})

    def _follow(self, op: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [value for value in operands((*args, *kwargs.values())) if isinstance(value, Tensor)]
        written = written_positions(op)
        if written:
            self._before_write(op, args, kwargs, written)
        out = op(*args, **kwargs)
        self._clock += 1
        results = [out] if isinstance(out, Tensor) else [value for value in operands((out,)) if isinstance(value, Tensor)]
        if self.open:
            if is_random(op):
                self.refuse(self.open, f"draws random numbers ({op.namespace}.{op._opname})")
            storages = [_storage(tensor) for tensor in tensors]
            for scope in tuple(self.open):
                self._judge(scope, op, args, kwargs, list(zip(tensors, storages, strict=True)), results)
        if results:
            self._record(tensors, results)
        return out

    def _judge(
        self,
        scope: Scope,
        op: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[tuple[Tensor, int]],
        results: list[Tensor],
    ) -> None:
        marks = scope.marks
        inputs: list[tuple[Tensor, Field | None]] = []
        for tensor, storage in tensors:
            if storage in marks:
                inputs.append((tensor, marks[storage]))
            elif not self._is_constant(scope, tensor, storage, op):
                return
        if not inputs:
            scope.computed += 1
            return
        if is_shape_only(op):
            return
        dependent = {id(tensor) for tensor, _ in inputs}
        reason = admit(op, args, kwargs, lambda value: id(value) in dependent)
        if reason is None and not all(result.is_floating_point() for result in results):
            reason = f"turns values into integers ({op.namespace}.{op._opname})"
        if reason is not None:
            self.refuse((scope,), reason)
            return
        scope.ops += 1
        for result in results:
            storage = self._hold(result)
            found = advance(op, args, inputs, result)
            # Views and pieces that are written one by one share a storage and thus a field.
            marks[storage] = join(marks[storage], found) if storage in marks else found
        macs = macs_of(op, args, results)
        scope.macs += macs
        scope.convolutions += op._opname in ("convolution", "mm", "bmm", "addmm", "baddbmm")

    def _is_constant(self, scope: Scope, tensor: Tensor, storage: int, op: OpOverload) -> bool:
        """Whether an operand without a mark is a constant of the scope; ends the scope if it is not."""
        born = self._born.get(storage)
        if born is not None and born < scope.start:
            self.refuse((scope,), "uses a tensor that was computed outside of its call")
            return False
        if born is None and type(tensor) is not Parameter and op._opname != "lift_fresh":
            scope.foreign.setdefault(storage, StorageWeakRef(tensor.untyped_storage()))
        return True

    def _before_write(
        self, op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], written: tuple[tuple[int, str], ...]
    ) -> None:
        """Ends the scopes that are older than what is written, and keeps the value of what the network owns."""
        for position, name in written:
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in operands((target,)):
                if not isinstance(tensor, Tensor):
                    continue
                born = self._born.get(_storage(tensor), -1)
                late = [scope for scope in self.open if born < scope.start]
                self.refuse(late, f"writes into a tensor that it did not make ({op.namespace}.{op._opname})")
                if born < 0 and id(tensor) not in self._saved:
                    self._saved[id(tensor)] = (tensor, tensor.clone())

    def _record(self, tensors: list[Tensor], results: list[Tensor]) -> None:
        known = {_storage(tensor) for tensor in tensors}
        for result in results:
            storage = _storage(result)
            if storage not in known and storage not in self._born:
                self._hold(result)
                self._born[storage] = self._clock
        if len(self._refs) > self._limit:
            self._prune()
            self._limit = max(_PRUNE_AT, 2 * len(self._refs))

    def _hold(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key not in self._refs:
            self._refs[key] = StorageWeakRef(storage)
        return key

    def _prune(self) -> None:
        dead = [key for key, reference in self._refs.items() if reference.expired()]
        for key in dead:
            del self._refs[key]
            self._born.pop(key, None)
            for scope in self.open:
                scope.marks.pop(key, None)


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


_MEMORY: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.numpy,
        Tensor.tolist,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.__deepcopy__,
        Tensor.__reduce_ex__,
        Tensor.data_ptr,
        Tensor.untyped_storage,
        Tensor.storage,
        Tensor.share_memory_,
        Tensor.apply_,
        Tensor.map_,
        torch.save,
    }
)


class Reads(TorchFunctionMode):
    """Ends the scopes whose code reads the memory of a dependent tensor without an op."""

    def __init__(self, proof: Proof) -> None:
        super().__init__()
        self._proof = proof

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MEMORY and self._proof.open and args and isinstance(args[0], Tensor):
            name = getattr(func, "__name__", str(func))
            late = [scope for scope in self._proof.open if self._proof.depends(scope, args[0])]
            self._proof.refuse(late, f"reads the memory of a tensor that depends on the input ({name})")
        return func(*args, **(kwargs or {}))
