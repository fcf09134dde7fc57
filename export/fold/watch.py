"""The watch that goes with a proof, on the level of Python calls.

It ends the scopes whose code reads the memory of a dependent tensor without an op (``numpy()``, ``tolist()``,
``data_ptr()``). And it takes a short cut: a dispatch mode costs about 20 us an op, which a loop of 262,144 one-channel
convolutions pays three times each; the calls of such loops (a slice, a convolution, an addition, a concatenation) are
judged here, with the same rules, and run without it. Whatever else is called goes through the dispatch mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from edgefold.export.fold.affine import Proof, Scope, storage_of
from edgefold.export.fold.calls import calls_watched
from edgefold.export.fold.field import Field, convolved, in_pieces, join
from edgefold.export.fold.read import Form, Rows, Shifted, Total, leaf

_MEMORY: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.numpy,
        Tensor.tolist,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.__deepcopy__,
        Tensor.__reduce_ex__,
        Tensor.__repr__,  # prints without an op that a mode would see
        Tensor.__format__,
        Tensor.data_ptr,
        Tensor.untyped_storage,
        Tensor.storage,
        Tensor.share_memory_,
        Tensor.apply_,
        Tensor.map_,
        torch.save,
    }
)
_SET_DATA = vars(torch._C.TensorBase)["data"].__set__
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
                stack.enter_context(calls_watched(one.leave, one.writes.before_attribute))
                yield one
        finally:
            one.writes.restore()


class Watch(TorchFunctionMode):
    """Sees the Python calls of the code under proof."""

    def __init__(self, proof: Proof, *, quick: bool) -> None:
        super().__init__()
        self._proof = proof
        self._fields = _Fields()
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
        if kwargs and func is torch.cat and len(args) == 1 and [*kwargs] == ["dim"]:
            args, kwargs = (args[0], kwargs["dim"]), None
        if not kwargs:
            quick = self._quick.get(func)
            if quick is not None and not torch.is_autocast_enabled("cpu"):  # which casts, and the results have other types
                watch = sys.getprofile()
                sys.setprofile(None)  # no foreign code from here on, and many calls of our own for each convolution of a loop
                try:
                    out = quick(func, args)
                finally:
                    sys.setprofile(watch)
                if out is not _NOT_HERE:
                    return out
        if func in _MEMORY and self._proof.open and args and isinstance(args[0], Tensor):
            late = [scope for scope in self._proof.open if self._proof.depends(scope, args[0])]
            self._proof.refuse(late, f"reads the memory of a tensor that depends on the input ({func.__name__})")
        elif func == _SET_DATA:
            with torch._C.DisableTorchFunction():
                storage = storage_of(args[0])
                if storage not in self._proof.born:
                    self._proof.refuse(self._proof.open, "replaces the data of a tensor that it did not make")
                    self._proof.writes.before_data(args[0], storage)
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
            scope.forms.pop(made, None)
            if not self._are_constants(scope, weight, bias):
                continue
            if source in marks:
                seen = marks[source]
                geometry = (stride, padding, dilation, groups)
                marks[made] = None if seen is None else self._fields.convolved(seen, weight.shape, *geometry)
                if source == storage_of(scope.source):
                    form = leaf(scope.source, x, weight, bias, *geometry)
                    if form is not None:
                        scope.forms[made] = form
                scope.ops += 1
                scope.convolutions += 1
                scope.macs += out.numel() * (weight.numel() // weight.shape[0])
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
        return self._combine(out, tensors, adds=True)

    def _concatenate(self, func: Any, args: Any) -> Any:
        tensors: Any = args[0] if args else None
        if len(args) != 2 or type(tensors) not in (list, tuple) or any(type(value) is not Tensor for value in tensors):
            return _NOT_HERE
        with _NoDispatch():
            out = func(*args)
        return self._combine(out, list(tensors), adds=False, follow=args[1] == 1)

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
            scope.forms.pop(source, None)  # it is known of whole tensors, and a part has the same storage
            seen = marks[source]
            if seen is not None:
                ndim = len(seen.axes)
                if x.shape[-ndim:] != out.shape[-ndim:]:
                    marks[source] = None
                else:
                    marks[source] = in_pieces(seen)
        return out

    def _combine(self, out: Tensor, tensors: list[Tensor], *, adds: bool, follow: bool = True) -> Tensor:
        """Marks a new tensor that is affine in several: their sum, or their concatenation."""
        proof, made = self._proof, storage_of(out)
        proof.clock += 1
        proof.born[made] = proof.clock
        storages = [storage_of(value) for value in tensors]
        for scope in tuple(proof.open):
            marks, forms = scope.marks, scope.forms
            marks.pop(made, None)
            forms.pop(made, None)
            marked: list[tuple[Tensor, int]] = []
            constants: list[Tensor] = []
            for one, key in zip(tensors, storages, strict=True):
                if key in marks:
                    marked.append((one, key))
                elif proof.is_constant(scope, one, key):
                    constants.append(one)
                else:
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
            scope.sums += adds and len(marked) > 1
            seen = marks[marked[0][1]]
            for _, key in marked:
                if marks[key] is not seen:
                    seen = self._fields.join(seen, marks[key])
            if not adds and seen is not None:
                seen = in_pieces(seen)
            whole = follow and (not adds or all(one.shape == out.shape for one, _ in marked))
            marks[made] = seen if whole else None
            form = _form(out, [(one, forms.get(key)) for one, key in marked], constants, adds=adds) if forms and whole else None
            if form is not None:
                forms[made] = form
        return out

    def _are_constants(self, scope: Scope, weight: Tensor, bias: Tensor | None) -> bool:
        storage = storage_of(weight)
        if storage in scope.marks or (bias is not None and storage_of(bias) in scope.marks):
            self._proof.refuse((scope,), "applies aten.convolution with weights that depend on the input")
            return False
        return self._proof.is_constant(scope, weight, storage) and (
            bias is None or self._proof.is_constant(scope, bias, storage_of(bias))
        )


class _Fields:
    """The fields of a loop, which are few: found by identity, since to hash them costs as much as the loop itself."""

    def __init__(self) -> None:
        self._convolved: dict[Any, tuple[Field, Field | None]] = {}
        self._joined: dict[tuple[int, int], tuple[Field, Field, Field | None]] = {}

    def convolved(self, field: Field, *geometry: Any) -> Field | None:
        """As `edgefold.export.fold.field.convolved`."""
        key = (id(field), *geometry)
        found = self._convolved.get(key)
        if found is None:
            found = self._convolved[key] = (field, convolved(field, *geometry))
        return found[1]

    def join(self, left: Field | None, right: Field | None) -> Field | None:
        """As `edgefold.export.fold.field.join`."""
        if left is None or right is None:
            return None
        found = self._joined.get((id(left), id(right)))
        if found is None:
            found = self._joined[id(left), id(right)] = (left, right, join(left, right))
        return found[2]


def _form(out: Tensor, parts: list[tuple[Tensor, Form | None]], constants: list[Tensor], *, adds: bool) -> Form | None:
    """The form of a sum or of a concatenation of channels, if it is known of all parts."""
    known = [form for _, form in parts if form is not None]
    if len(known) < len(parts):
        return None
    if not adds:
        return Rows(tuple(known), tuple(one.shape[1] for one, _ in parts)) if not constants else None
    if len(known) == 2:
        return Total(*known)
    if len(constants) == 1 and out.ndim - constants[0].ndim <= 1 and constants[0].numel() == out.shape[1]:
        channels = constants[0].shape[1 - (out.ndim - constants[0].ndim)]
        return Shifted(known[0], constants[0].detach().flatten()) if channels == out.shape[1] else None
    return None
