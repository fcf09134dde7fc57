"""One run of the network under the affine proof, in which every module of own code is a scope.

The modules are those of a shadow tree (`edgefold.export.fold.shadow`), whose calls are watched through an attribute of the
instance. Into a module of thousands of layers the run feeds dense random values instead of its activations: such a module is
too slow to be run again for its check, and activations after a ReLU would not show every coefficient. A replay feeds the same
values again, so the folded network can be compared with the recorded one: first with folded layers that answer the calls of the
modules, then with folded layers in the place of the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgefold.export.fold.affine import Proof, Scope
from edgefold.export.fold.attempt import HUGE, LARGE
from edgefold.export.fold.check import random_like
from edgefold.export.fold.evidence import Evidence, evidence
from edgefold.export.fold.kernel import FoldedConv
from edgefold.export.fold.shadow import children, is_plain_layer, shadow, size_of
from edgefold.export.fold.watch import proof
from edgefold.export.fold.writes import Writes

MANY = 5_000  # modules in a tree that is run as few times as possible
_NO_LAYERS: Mapping[int, FoldedConv] = {}


class Recorder:
    """Watches the calls of the modules under ``root``, a shadow tree."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.calls: dict[int, list[Evidence]] = {}
        self.refused: dict[int, str] = {}
        self.order: list[int] = []  # modules by their first call
        self.names: dict[int, str] = {}
        self.modules: dict[int, nn.Module] = {}
        self.chance = False  # whether the run drew random numbers of the system
        self.writes = Writes()
        self._fed: dict[int, list[Tensor]] = {}
        self._proof: Proof | None = None
        self._replay: dict[int, Iterator[Tensor]] | None = None
        self._layers = _NO_LAYERS
        self._replaced: list[nn.Module] = []
        sizes: dict[int, int] = {}
        self._many = {id(module) for _, module in _walk(root) if size_of(module, sizes) > MANY}
        for name, module in _walk(root):
            if id(module) not in self.modules and not isinstance(module, torch.jit.ScriptModule):
                self.modules[id(module)] = module
                self.names[id(module)] = name
                vars(module)["_call_impl"] = self._watched(module)

    @property
    def feeds(self) -> bool:
        """Whether the run put random values in place of activations."""
        return bool(self._fed)

    def record(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
        """Runs the network under the proof and returns its output."""
        with proof(quick=True) as mode:
            self._proof = mode
            try:
                # Copies: what the network writes into, its input say, is given back its values.
                return pytree.tree_map_only(Tensor, Tensor.clone, self.root(*args, **kwargs))
            finally:
                self.chance, self.writes = mode.chance, mode.writes
                self._proof = None

    def replay(
        self,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        *,
        layers: Mapping[int, FoldedConv] = _NO_LAYERS,
        root: nn.Module | None = None,
    ) -> Any:
        """Runs the network again, with what `record` fed into it.

        ``layers`` answer the calls of the modules with these ids; everything else about the modules stays as it is. ``root`` is
        another tree to run, of `replaced`.
        """
        self._replay = {key: iter(values) for key, values in self._fed.items()}
        self._layers = layers
        try:
            with torch.no_grad():
                return (root or self.root)(*args, **kwargs)
        finally:
            self._replay, self._layers = None, _NO_LAYERS

    def replaced(self, layers: Mapping[int, FoldedConv]) -> nn.Module:
        """A copy of the tree with ``layers`` in the place of the modules with these ids."""
        copies: dict[int, nn.Module] = {**layers}
        root = shadow(self.root, copies)
        for key in self._fed.keys() & copies.keys():
            vars(copies[key])["_call_impl"] = self._watched(copies[key], key)
            self._replaced.append(copies[key])
        return root

    def answered(self, layers: Mapping[int, FoldedConv]) -> nn.Module:
        """A copy of the tree in which ``layers`` answer the calls of the modules with these ids, which stay as they are."""
        copies: dict[int, nn.Module] = {}
        root = shadow(self.root, copies)
        for key in layers.keys() & copies.keys():
            vars(copies[key])["_call_impl"] = layers[key].kernel
        return root

    def release(self) -> None:
        """Ends the watch."""
        for module in (*self.modules.values(), *self._replaced):
            vars(module).pop("_call_impl", None)

    def _watched(self, module: nn.Module, key: int | None = None) -> Callable[..., Any]:
        call: Callable[..., Any] = type(module)._call_impl
        key = id(module) if key is None else key

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._replay is not None and key in self._replay:
                args = (next(self._replay[key], *args),)
            layer = self._layers.get(key)
            if layer is not None:
                return layer.forward(*args, **kwargs)
            if self._proof is None:
                return call(module, *args, **kwargs)
            return self._prove(self._proof, module, args, kwargs)

        return watched

    def _prove(self, mode: Proof, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = id(module)
        if key not in self.calls:
            self.calls[key] = []
            self.order.append(key)
        reason = _unfit(args, kwargs)
        if reason:
            self.refused.setdefault(key, reason)
            call: Callable[..., Any] = type(module)._call_impl
            return call(module, *args, **kwargs)
        before = len(mode.writes.settings)
        try:
            return self._prove_call(mode, module, key, args[0])
        finally:
            for setting in mode.writes.settings[before:]:
                setting.inside.add(key)

    def _prove_call(self, mode: Proof, module: nn.Module, key: int, x: Tensor) -> Any:
        call: Callable[..., Any] = type(module)._call_impl
        if key in self._many and not mode.open:
            x = random_like(tuple(x.shape), x.dtype, seed=len(self._fed))
            self._fed.setdefault(key, []).append(x)
        with mode.scope(x) as scope:
            y = call(module, x)
            field = mode.field_of(scope, y) if isinstance(y, Tensor) and scope.sound else None
            form = mode.form_of(scope, y) if isinstance(y, Tensor) and scope.ops >= LARGE else None
            reason = scope.reason or _unfit_result(mode, scope, x, y)
        if reason or scope.reason:
            self.refused.setdefault(key, reason or scope.reason)
        else:
            huge = scope.ops >= HUGE
            fed = huge and key in self._fed
            self.calls[key].append(evidence(scope, x, y, field, (x, y) if fed else None, form))
        return y


@contextmanager
def recorder(root: nn.Module) -> Iterator[Recorder]:
    """A recorder that ends its watch when the block ends."""
    one = Recorder(root)
    try:
        yield one
    finally:
        one.release()


def same(left: Any, right: Any, tolerance: float = 1e-3) -> bool:
    """Whether two outputs of a network agree, relative to the range of each tensor; ``None`` among them does not count."""
    ones, two = ([leaf for leaf in pytree.tree_leaves(value) if leaf is not None] for value in (left, right))
    if len(ones) != len(two):
        return False
    for one, other in zip(ones, two, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape:
                return False
            if one.is_floating_point():
                finite = one.isfinite()
                scale = float(one[finite].abs().max()) if bool(finite.any()) else 0.0
                if not torch.allclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True):
                    return False
    return True


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the tree that is not a plain layer, by path, parents first, each once."""
    seen = set()
    stack = [("", root)]
    while stack:
        name, module = stack.pop()
        if is_plain_layer(module):
            continue
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        below = [(f"{name}.{path}" if name else path, child) for path, child in children(module)]
        stack.extend(reversed(below))


def _unfit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return "takes other arguments than one tensor"
    if args[0].ndim not in (3, 4) or not args[0].is_floating_point() or 0 in args[0].shape:
        return "its input is not (batch, channels, *space) with one or two spatial dimensions"
    return ""


def _unfit_result(mode: Proof, scope: Scope, x: Tensor, y: Any) -> str:
    if not isinstance(y, Tensor):
        return "returns something other than one tensor"
    if not mode.depends(scope, y):
        return "its output does not depend on its input"
    if y.ndim != x.ndim or len(y) != len(x) or y.dtype != x.dtype:
        return "its output is not (batch, channels, *space) with the dimensions of its input"
    return ""
