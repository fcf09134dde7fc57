"""One attempt to fold a function that was proven affine: locate, probe, check, and refuse what would be dearer.

The order is by cost. Where the proof knows the receptive field, the first probe trusts it; where that fails the check, the
field is measured. Small functions are proven a second time in float64 on a batch of two and checked there; a function of very
many ops (a layer of 262,144 modules) is checked in its own type against its recorded run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgefold.export.fold.check import TOLERANCE, diagnose, random_like, relative_error
from edgefold.export.fold.cost import effective_macs
from edgefold.export.fold.double import Double
from edgefold.export.fold.field import Field
from edgefold.export.fold.kernel import Kernel, canonical
from edgefold.export.fold.locate import NotOneKernelError, locate
from edgefold.export.fold.probe import probe
from edgefold.export.fold.structure import read_structure
from edgefold.export.fold.watch import proof

Function = Callable[[Tensor], Tensor]

LARGE = 3_000  # ops; a function of more is not run in float64 nor proven twice: a mode costs more than its ops
HUGE = 40_000  # ops; a function of more is run as few times as possible
_DOUBLE_WORK = 1.5e9  # MACs of one check run; float64 convolutions are slow beyond it
_SMALL_SIZE = 40  # lines that are measured at the real size


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one proven call showed: shapes, work, and for huge functions the call itself as (input, output)."""

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    macs: int
    ops: int
    computed: int
    convolutions: int
    field: Field | None
    foreign: frozenset[int]
    pair: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A function as one convolution. ``macs`` are the effective ones of one sample."""

    kernel: Kernel
    macs: int
    error: float


def attempt(f: Function, calls: tuple[Evidence, ...]) -> Folded | str:
    """The convolution that f is in all of its calls, or why it is none."""
    reason = "it is no convolution"
    with torch.no_grad():
        for field, resize in _ways(calls[0]):
            try:
                kernel = _recover(f, calls[0], field, resize=resize)
            except NotOneKernelError as error:
                reason = str(error)
                continue
            dear = _too_dear(kernel, calls)
            if dear:
                return dear
            try:
                checked = _check(f, kernel, calls)
            except NotOneKernelError as error:
                checked = str(error)
            if isinstance(checked, Folded):
                return checked
            reason = checked
    return reason


def _ways(call: Evidence) -> Iterator[tuple[Field | None, bool]]:
    """Which field to trust and whether to choose the probe's size, from the cheapest way to the most careful."""
    if call.field is not None:
        yield call.field, True
    yield None, True
    if call.ops < LARGE:
        yield None, False


def _in_double(call: Evidence) -> bool:
    return call.ops < LARGE and call.macs < _DOUBLE_WORK


def _recover(f: Function, call: Evidence, field: Field | None, *, resize: bool) -> Kernel:
    dtype = torch.float64 if _in_double(call) else call.dtype
    run = _in_float64(f) if dtype == torch.float64 else f
    run = _guarded(run)
    if field is None:
        field = locate(run, _locating_shape(call.shape) if resize else (1, *call.shape[1:]), dtype)
    return canonical(probe(run, call.shape, call.out_shape, field, dtype, resize=resize))


def _guarded(f: Function) -> Function:
    """f, with whatever its code raises on other sizes as a reason not to fold this way."""

    def run(x: Tensor) -> Tensor:
        try:
            return f(x)
        except Exception as error:  # foreign code may raise anything
            text = str(error).splitlines()
            raise NotOneKernelError(
                f"its code fails on an input of shape {tuple(x.shape)}: {text[0] if text else error!r}"
            ) from error

    return run


def _in_float64(f: Function) -> Function:
    def run(x: Tensor) -> Tensor:
        with Double():
            return f(x.double())

    return run


def _locating_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A small size that strides and dynamic paddings treat like the real one."""
    return (1, shape[1], *(size if size <= _SMALL_SIZE else 24 + (size - 24) % 16 for size in shape[2:]))


def _too_dear(kernel: Kernel, calls: tuple[Evidence, ...]) -> str:
    before, after = calls[0].macs, _macs(kernel, calls[0].out_shape) * calls[0].shape[0]
    if after > before:
        return f"one convolution would need {after:,} multiply-accumulates, its own form needs {before:,}"
    return ""


def _macs(kernel: Kernel, out_shape: tuple[int, ...]) -> int:
    positions = 1
    for size in out_shape[2:]:
        positions *= size
    return effective_macs(read_structure(kernel.weight, kernel.groups), positions)


def _check(f: Function, kernel: Kernel, calls: tuple[Evidence, ...]) -> Folded | str:
    """The kernel with the border that f has, if it is f in all calls."""
    reason = ""
    for candidate in _borders(kernel):
        reason, error = "", 0.0
        for call in calls:
            found = _check_call(f, candidate, call)
            if isinstance(found, str):
                reason = reason or found
                break
            error = max(error, found)
        if not reason:
            return Folded(candidate.to(calls[0].dtype), _macs(candidate, calls[0].out_shape), error)
        if candidate is kernel:
            first = reason
    return first


def _borders(kernel: Kernel) -> Iterator[Kernel]:
    """The kernel with zeros around the input, then with the other borders that PyTorch pads with."""
    yield kernel
    if any(before or after for before, after in kernel.padding):
        for mode in ("replicate", "reflect", "circular"):
            yield replace(kernel, mode=mode)


def _check_call(f: Function, kernel: Kernel, call: Evidence) -> float | str:
    """The error in the type of the network, or why the kernel is not f."""
    own = kernel.to(call.dtype)
    limit = TOLERANCE.get(call.dtype, TOLERANCE[torch.float32])
    if call.ops >= LARGE:
        x, y = call.pair or _run_on_two(f, call)
        error = _error(own, x, y)
        return error if error <= limit else f"one convolution is off by {error:.1g} of its output (relative)"
    reason = _prove_again(f, kernel, call)
    if reason:
        return reason
    x = random_like(call.shape, call.dtype, seed=1)
    error = _error(own, x, f(x))
    return error if error <= limit else f"in {call.dtype} it is off by {error:.1g} of its output (relative)"


def _run_on_two(f: Function, call: Evidence) -> tuple[Tensor, Tensor]:
    x = random_like((max(2, call.shape[0]), *call.shape[1:]), call.dtype)
    return x, _guarded(f)(x)


def _prove_again(f: Function, kernel: Kernel, call: Evidence) -> str:
    """Proves f on a batch of two at the real size and checks the kernel there; returns the reason why not."""
    dtype = torch.float64 if _in_double(call) else call.dtype
    x = random_like((max(2, call.shape[0]), *call.shape[1:]), dtype)
    run = _in_float64(f) if dtype == torch.float64 else f
    try:
        with proof(quick=False) as mode, mode.scope(x) as scope:
            y = run(x)
    except Exception as error:  # foreign code may raise anything
        text = str(error).splitlines()
        return f"its code fails on a batch of {len(x)}: {text[0] if text else repr(error)}"
    if not scope.sound:
        return scope.reason
    if not scope.foreign.keys() <= call.foreign:
        return "uses a tensor of unknown origin: another one in every call"
    off = _error(kernel.to(y.dtype), x.to(y.dtype), y)
    if off <= TOLERANCE.get(y.dtype, TOLERANCE[torch.float32]):
        return ""
    return diagnose(run, x, kernel.to(y.dtype), off)


def _error(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    try:
        return relative_error(kernel, x, y)
    except RuntimeError:  # a border wider than the input allows
        return float("inf")
