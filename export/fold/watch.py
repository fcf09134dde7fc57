"""The watch that goes with a proof, on the level of Python calls.

It ends the scopes whose code reads the memory of a dependent tensor without an op (``numpy()``, ``tolist()``,
``data_ptr()``). And it takes a short cut: a dispatch mode costs about 20 us an op, which a loop of 262,144 one-channel
convolutions pays three times each; the calls of such loops (a slice, a convolution, an addition, a concatenation) are
judged here, with the same rules, and run without it. Whatever else is called goes through the dispatch mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from edgefold.export.fold.affine import Proof, Scope, storage_of
from edgefold.export.fold.field import Field, convolved, join

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
_NOT_HERE = object()
_PLAIN = (Tensor, Parameter)  # tensors without a dispatch of their own
_NUMBERS = (int, float)
_ENDS = (int, type(None))
_ALL = slice(None)
_NoDispatch = torch._C._DisableTorchDispatch


@contextmanager
def proof(*, quick: bool) -> Iterator[Proof]:
    """A proof at work, with its watch. ``quick`` allows the short cut, which other dispatch modes would not see."""
    one = Proof()
    with torch.no_grad():
        try:
            with ExitStack() as stack:
                stack.enter_context(one)
                stack.enter_context(Watch(one, quick=quick))
                yield one
        finally:
            one.restore()


class Watch(TorchFunctionMode):
    """Sees the Python calls of the code under proof."""

    def __init__(self, proof: Proof, *, quick: bool) -> None:
        super().__init__()
        self._proof = proof
        self._quick: dict[Any, Callable[[Any, Any], Any]] = {}
        if quick:
            self._quick = {
                torch.conv1d: self._convolve,
                torch.conv2d: self._convolve,
                Tensor.add: self._add,
                Tensor.__getitem__: self._slice,
                torch.cat: self._concatenate,
            }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            quick = self._quick.get(func)
            if quick is not None:
                out = quick(func, args)
                if out is not _NOT_HERE:
                    return out
        if func in _MEMORY and self._proof.open and args and isinstance(args[0], Tensor):
            late = [scope for scope in self._proof.open if self._proof.depends(scope, args[0])]
            self._proof.refuse(late, f"reads the memory of a tensor that depends on the input ({func.__name__})")
        return func(*args, **(kwargs or {}))

    def _convolve(self, func: Any, args: Any) -> Any:
        if len(args) != 7:
            return _NOT_HERE
        x, weight, bias, stride, padding, dilation, groups = args
        if type(x) is not Tensor or type(weight) not in _PLAIN or not (bias is None or type(bias) in _PLAIN):
            return _NOT_HERE
        if type(stride) is not tuple or type(padding) is not tuple or type(dilation) is not tuple:
            return _NOT_HERE
        with _NoDispatch():
            out = func(x, weight, bias, stride, padding, dilation, groups)
        proof = self._proof
        proof.clock += 1
        made, source = storage_of(out), storage_of(x)
        proof.born[made] = proof.clock
        for scope in tuple(proof.open):
            marks = scope.marks
            marks.pop(made, None)
            if not self._are_constants(scope, weight, bias):
                continue
            if source in marks:
                shape = weight.shape
                seen = marks[source]
                marks[made] = convolved(seen, shape, stride, padding, dilation, groups) if seen is not None else None
                scope.ops += 1
                scope.convolutions += 1
                scope.macs += out.numel() * (weight.numel() // shape[0])
            elif proof.is_constant(scope, x, source):
                scope.computed += 1
        return out

    def _add(self, func: Any, args: Any) -> Any:
        if len(args) != 2:
            return _NOT_HERE
        left, right = args
        if type(left) is Tensor:
            if type(right) is Tensor:
                tensors = [left, right]
            elif type(right) in _NUMBERS:
                tensors = [left]
            else:
                return _NOT_HERE
        else:
            return _NOT_HERE
        with _NoDispatch():
            out = func(left, right)
        shape = out.shape
        return self._combine(out, tensors, follow=left.shape == shape and (len(tensors) == 1 or right.shape == shape))

    def _concatenate(self, func: Any, args: Any) -> Any:
        tensors: Any = args[0] if args else None
        if len(args) != 2 or type(tensors) not in (list, tuple) or any(type(value) is not Tensor for value in tensors):
            return _NOT_HERE
        with _NoDispatch():
            out = func(*args)
        return self._combine(out, list(tensors), follow=args[1] == 1, moves=True)

    def _slice(self, func: Any, args: Any) -> Any:
        x, index = args
        if type(x) is not Tensor:
            return _NOT_HERE
        for part in index if type(index) is tuple else (index,):
            if type(part) is slice:
                ends = (type(part.start), type(part.stop), type(part.step))
                if part != _ALL and not (ends[0] in _ENDS and ends[1] in _ENDS and ends[2] in _ENDS):
                    return _NOT_HERE
            elif type(part) is not int and part is not None and part is not Ellipsis:
                return _NOT_HERE
        with _NoDispatch():
            out = func(x, index)
        proof, source = self._proof, storage_of(x)
        proof.clock += 1
        for scope in tuple(proof.open):
            marks = scope.marks
            if source not in marks:
                if proof.is_constant(scope, x, source):
                    scope.computed += 1
                continue
            scope.ops += 1
            seen = marks[source]
            if seen is not None:
                ndim = len(seen.axes)
                if x.shape[-ndim:] != out.shape[-ndim:]:
                    marks[source] = None
                elif seen.blocks > 1:
                    marks[source] = Field(seen.axes, 1)
        return out

    def _combine(self, out: Tensor, tensors: list[Tensor], *, follow: bool, moves: bool = False) -> Tensor:
        """Marks a new tensor that is affine in several."""
        proof, made = self._proof, storage_of(out)
        proof.clock += 1
        proof.born[made] = proof.clock
        storages = [storage_of(value) for value in tensors]
        for scope in tuple(proof.open):
            marks = scope.marks
            marks.pop(made, None)
            marked = []
            for one, key in zip(tensors, storages, strict=True):
                if key in marks:
                    marked.append(marks[key])
                elif not proof.is_constant(scope, one, key):
                    break
            if not scope.sound:
                continue
            if not marked:
                scope.computed += 1
                continue
            if not out.is_floating_point():
                proof.refuse((scope,), "turns values into integers (aten.add)")
                continue
            scope.ops += 1
            seen = marked[0]
            for other in marked:
                if other is not seen:
                    seen = join(seen, other)
            if moves and seen is not None and seen.blocks > 1:
                seen = Field(seen.axes, 1)
            marks[made] = seen if follow else None
        return out

    def _are_constants(self, scope: Scope, weight: Tensor, bias: Tensor | None) -> bool:
        storage = storage_of(weight)
        if storage in scope.marks or (bias is not None and storage_of(bias) in scope.marks):
            self._proof.refuse((scope,), "applies aten.convolution with weights that depend on the input")
            return False
        return self._proof.is_constant(scope, weight, storage) and (
            bias is None or self._proof.is_constant(scope, bias, storage_of(bias))
        )
