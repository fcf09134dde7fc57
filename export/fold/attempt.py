"""One attempt to fold a function that was proven affine: locate, probe, check, and refuse what would be dearer.

The order is by cost. Where the proof knows the receptive field, the first probe trusts it; where that fails the check, the
field is measured. Small functions are proven a second time in float64 on a batch of two and checked there, and at last in their
own type on a batch of their own size, where code may round on purpose or ask for the type. A function of very many ops (a layer
of 262,144 modules) is checked in its own type against its recorded run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgefold.export.fold.check import (
    BIAS_VARIES,
    TOLERANCE,
    bias_varies,
    diagnose,
    differs_at_border_only,
    output_error,
    random_like,
    relative_error,
)
from edgefold.export.fold.double import Double
from edgefold.export.fold.evidence import Evidence, macs_of_kernel, too_dear
from edgefold.export.fold.field import Field
from edgefold.export.fold.kernel import Kernel, canonical
from edgefold.export.fold.locate import NotOneKernelError, locate, moves
from edgefold.export.fold.probe import macs_by_sample, probe
from edgefold.export.fold.watch import proof

Function = Callable[[Tensor], Tensor]

LARGE = 3_000  # ops; a function of more is not run in float64 nor proven twice: a mode costs more than its ops
HUGE = 40_000  # ops; a function of more is run as few times as possible
_BATCH = 5  # samples of a check run: probes have two, which some code leaves as they are
_DOUBLE_WORK = 1.5e9  # MACs of one check run; float64 convolutions are slow beyond it
_ROUNDING = 2e-6  # errors in float64 that float32 constants explain
_NOISE = 1e-12  # channels fainter than this share of the strongest may be rounding alone
_MANY_TAPS = 121  # of a kernel: more come from pooling over the image rather than from a convolution
_UNSURE = 2.0  # a count by samples may be off by so much; by less where all samples say the same
_SURE = 1.25
_SMALL_SIZE = 40  # lines that are measured at the real size


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A function as one convolution. ``macs`` are the effective ones of one sample."""

    kernel: Kernel
    macs: int
    error: float


def attempt(f: Function, calls: tuple[Evidence, ...]) -> Folded | str:
    """The convolution that f is in all of its calls, or why it is none."""
    if any(0 in call.out_shape for call in calls):
        return "its output is empty"
    with torch.no_grad():
        one = _begin(f, calls, double=True)
        if isinstance(one, str):
            return one
        found = one.fold()
        if isinstance(found, str) and one.nearest <= _ROUNDING and one.in_double:
            # Constants that the code has in float32 differ from each other by their rounding: there f is one convolution.
            other = _begin(f, calls, double=False)
            found = other if isinstance(other, str) else other.fold()
        return found if isinstance(found, str) else _in_use(f, calls, found)


def _in_use(f: Function, calls: tuple[Evidence, ...], found: Folded) -> Folded | str:
    """What was found, if it is f in the type and at the batch size of the network too."""
    for call in calls:
        if call.pair is not None or (call.ops >= LARGE and call.shape[0] > 1):
            continue  # was checked so
        x = random_like(call.shape, call.dtype, seed=1)
        own = str(call.dtype).removeprefix("torch.")
        try:
            y = _guarded(f)(x)
        except NotOneKernelError as error:
            return str(error)
        if not bool(torch.isfinite(y).all()):
            return f"its values are not finite in {own}"
        off = relative_error(found.kernel, x, y)
        if off > TOLERANCE.get(call.dtype, TOLERANCE[torch.float32]):
            why = "it rounds, or asks for the type or the batch"
            return f"in {own} and a batch of {call.shape[0]} one convolution is off by {off:.1g} of its output (relative): {why}"
    return found


def _begin(f: Function, calls: tuple[Evidence, ...], *, double: bool) -> _Attempt | str:
    witnesses = []
    for call in calls:
        found = _witness(f, call, double=double)
        if isinstance(found, str):
            return found
        witnesses.append(found)
    return _Attempt(f, calls, tuple(witnesses))


@dataclass(frozen=True, slots=True, eq=False)
class Witness:
    """One run of f on dense random values, against which a kernel is checked; its type is that of the whole attempt."""

    x: Tensor
    y: Tensor


def _witness(f: Function, call: Evidence, *, double: bool) -> Witness | str:
    """The run for a check at the size of the network, or why f is no convolution.

    A function of few ops is proven a second time there, on a batch of `_BATCH` and in float64 if its code allows that.
    """
    if call.pair is not None:
        return Witness(*call.pair)
    shape = (max(_BATCH, call.shape[0]), *call.shape[1:])
    if call.ops >= LARGE:
        x = random_like(shape, call.dtype)
        try:
            return Witness(x, _guarded(f)(x))
        except NotOneKernelError as error:
            return str(error)
    found: Witness | str = ""
    for dtype in (torch.float64, call.dtype) if double and call.macs < _DOUBLE_WORK else (call.dtype,):
        found = _proven(f, random_like(shape, dtype), call)
        if isinstance(found, Witness) and found.y.dtype == dtype:
            break
    return found


def _proven(f: Function, x: Tensor, call: Evidence) -> Witness | str:
    run = _in_type(f, x.dtype)
    try:
        with proof(quick=False) as mode, mode.scope(x) as scope:
            y = run(x)
    except NotOneKernelError as error:
        return str(error)
    if not scope.sound:
        return scope.reason
    if not scope.foreign.keys() <= call.foreign:
        return "uses a tensor of unknown origin: another one in every call"
    return Witness(x, y)


class _Attempt:
    """Folding one function, in the floating type of its witnesses."""

    def __init__(self, f: Function, calls: tuple[Evidence, ...], witnesses: tuple[Witness, ...]) -> None:
        self._f, self._calls, self._witnesses = f, calls, witnesses
        self._call = calls[0]
        self._dtype = witnesses[0].y.dtype
        self._run = _in_type(f, self._dtype)
        self.in_double = self._dtype != self._call.dtype
        self.nearest = math.inf  # the least error of a kernel that was refused
        self._limit = TOLERANCE.get(self._dtype, TOLERANCE[torch.float32])

    def fold(self) -> Folded | str:
        """The convolution, or why there is none."""
        if self._call.kernel is not None and not self.in_double:
            kernel = canonical(self._call.kernel)
            checked = self._check(kernel)
            if isinstance(checked, Folded):
                return too_dear(kernel, self._call) or checked
        if self._sees_all():
            if self._call.written_out and math.prod(self._call.shape[2:]) > _MANY_TAPS:
                return "it is a sum over the whole image, for which one convolution would hold a weight for each position"
            if dear := self._dear_by_sample():
                return dear
        if self._bias_varies():
            return BIAS_VARIES
        reason = "it is no convolution"
        tried: set[tuple[Field, bool]] = set()
        unasked = True
        for field, resize in self._ways():
            # Where the field is known and small, one probe costs less than the question whether it pays to probe.
            if unasked and (tried or field is None or field.taps > _MANY_TAPS):
                unasked = False
                if not self._moves():
                    return "its weights depend on the position: the answer to one lit point does not move with the point"
            try:
                found = field or self._locate(resize=resize)
                if (found, resize) in tried:
                    continue
                tried.add((found, resize))
                if dear := self._surely_too_dear(found):
                    return dear
                kernel = self._recover(found, resize=resize)
            except NotOneKernelError as error:
                reason = str(error)
                continue
            dear = too_dear(kernel, self._call)
            if dear and self._call.ops >= LARGE:
                return dear
            checked = self._check(kernel)
            if isinstance(checked, Folded):
                return dear or checked
            reason = checked
        return reason

    def _bias_varies(self) -> bool:
        """Whether one more run says that f is none: networks have many such parts, and to locate their taps takes many runs."""
        witness = self._witnesses[0]
        if self._call.ops >= LARGE or witness.y.ndim != witness.x.ndim or not witness.y.numel():
            return False
        with suppress(NotOneKernelError):  # some code does not run on zeros
            return bias_varies(self._run, witness.x, witness.y)
        return False

    def _moves(self) -> bool:
        """Whether it pays to probe; not asked where a run is dear."""
        call = self._call
        if call.ops >= LARGE:
            return True
        own = (1, *call.shape[1:])
        for shape in (own,) if call.fixed else (_locating_shape(own), own):
            with suppress(NotOneKernelError):  # some code runs at its own size only
                return moves(self._run, shape, self._dtype)
        return True

    def _ways(self) -> Iterator[tuple[Field | None, bool]]:
        """Which field to trust and whether to choose the probe's size, from the cheapest way to the most careful."""
        call = self._call
        for resize in (True, False):
            if not (resize and call.fixed) and (resize or call.ops < LARGE):
                if call.field is not None:
                    yield call.field, resize
                yield None, resize

    def _locate(self, *, resize: bool) -> Field:
        shape = self._call.shape
        return locate(self._run, _locating_shape(shape) if resize else (1, *shape[1:]), self._dtype)

    def _recover(self, field: Field, *, resize: bool) -> Kernel:
        call = self._call
        return canonical(probe(self._run, call.shape, call.out_shape, field, self._dtype, resize=resize))

    def _sees_all(self) -> bool:
        """Whether f gives one value a channel for a whole image, by an unknown field: a mean before a linear layer does."""
        call = self._call
        one = math.prod(call.out_shape[2:]) == 1 < math.prod(call.shape[2:])
        return one and call.field is None and call.ops < LARGE

    def _surely_too_dear(self, field: Field) -> str:
        """Why a kernel of very many taps needs no probe; else empty."""
        return self._dear_by_sample() if field.taps > _MANY_TAPS else ""

    def _dear_by_sample(self) -> str:
        call = self._call
        one, even = macs_by_sample(self._run, call.shape, self._dtype)
        after = one * call.shape[0]
        if after <= (_SURE if even else _UNSURE) * call.macs:
            return ""
        return f"one convolution would need about {after:,} multiply-accumulates, its own form needs {call.macs:,}"

    def _check(self, kernel: Kernel) -> Folded | str:
        """The kernel with the border that f has, if it is f in all calls."""
        first = ""
        for candidate in _borders(kernel):
            reason = self._difference(candidate)
            if not reason:
                own = self._call.dtype
                return Folded(
                    candidate.to(own), macs_of_kernel(candidate, self._call.out_shape), self._error_in_use(candidate.to(own))
                )
            first = first or reason
            if candidate is kernel and not self._is_at_border(kernel):
                break
        return first

    def _difference(self, kernel: Kernel) -> str:
        """Why the kernel is not f; empty if it is."""
        for witness, call in zip(self._witnesses, self._calls, strict=True):
            error = relative_error(kernel, witness.x, witness.y)
            if error > self._limit:
                self.nearest = min(self.nearest, relative_error(kernel, witness.x, witness.y, _NOISE))
                if call.ops >= LARGE:
                    return f"one convolution is off by {error:.1g} of its output (relative)"
                return diagnose(self._run, witness.x, kernel, error)
        return ""

    def _is_at_border(self, kernel: Kernel) -> bool:
        pairs = self._witnesses
        return all(differs_at_border_only(kernel, one.x, one.y, self._limit) for one in pairs)

    def _error_in_use(self, kernel: Kernel) -> float:
        """The error in the floating type of the network; against f in float64 where that runs, whose rounding is none."""
        call, witness = self._call, self._witnesses[0]
        if self._dtype == call.dtype:
            return output_error(kernel, witness.x, witness.y)
        x = random_like(call.shape, call.dtype, seed=1)
        return output_error(kernel, x, self._run(x.to(self._dtype)))


def _in_type(f: Function, dtype: torch.dtype) -> Function:
    """f, run in float64 if that is the type; what its code raises becomes a reason not to fold."""
    guarded = _guarded(f)
    if dtype != torch.float64:
        return guarded

    def run(x: Tensor) -> Tensor:
        with Double():
            return guarded(x)

    return run


def in_batches(f: Function, size: int) -> Function:
    """f for batches of any size, where its code takes batches of ``size`` only; a last one is filled up with zeros."""

    def run(x: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            missing = size - len(part)
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            parts.append(f(whole)[: len(part)])
        return torch.cat(parts)

    return run


def _guarded(f: Function) -> Function:
    def run(x: Tensor) -> Tensor:
        try:
            return f(x)
        except Exception as error:  # foreign code may raise anything
            text = str(error).splitlines()
            raise NotOneKernelError(
                f"its code fails on an input of shape {tuple(x.shape)}: {text[0] if text else repr(error)}"
            ) from error

    return run


def _locating_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A size with room for most kernels that strides and dynamic paddings treat like the real one."""
    return (1, shape[1], *(size if 24 <= size <= _SMALL_SIZE else 24 + (size - 24) % 16 for size in shape[2:]))


def _borders(kernel: Kernel) -> Iterator[Kernel]:
    """The kernel with zeros around the input, then with the other borders that PyTorch pads with."""
    yield kernel
    if any(before or after for before, after in kernel.padding):
        for mode in ("replicate", "reflect", "circular"):
            yield replace(kernel, mode=mode)
