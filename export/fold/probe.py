"""Recovering the coefficients of an affine function that may be a convolution, by impulses.

An impulse of height A at input position i of channel m gives W[:, m, tap] * A + b at each output position q with
i = q * stride + first + tap. Several channels share one image: their impulses stand at the points of a grid wide enough that
the responses do not overlap; a stride s needs s phases an axis, which go to separate images. One grid point stays dark and
gives b. So an N x M layer costs about as much as one run on an image of M * K * K pixels, however it is written, also when each
of its N * M kernels is a module of its own.

The probe trusts its geometry; whether the kernel that it returns is the function is decided by `edgefold.export.fold.check`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgefold.export.fold.field import Axis, Field
from edgefold.export.fold.kernel import Kernel
from edgefold.export.fold.locate import NotOneKernelError

Function = Callable[[Tensor], Tensor]

_HEIGHT = 1024.0  # of an impulse: a power of two, so that scaling is exact; large, so that b costs few bits of W
_CHUNK = 1 << 23  # elements of one batch of inputs
_SAMPLED = 32  # input elements


@dataclass(frozen=True, slots=True)
class Line:
    """The probe along one axis: image size, impulse positions with the (tap, output) that each shows, repeated ``cells`` times.

    The copy ``c`` of an impulse at i stands at i + c * step, and its responses move by c * step / stride.
    """

    size: int
    outputs: int
    shots: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    cells: int
    step: int
    shift: int  # step / stride


def probe(
    f: Function, shape: tuple[int, ...], out_shape: tuple[int, ...], field: Field, dtype: torch.dtype, *, resize: bool
) -> Kernel:
    """The convolution with the reads of ``field`` that f is, if it is one.

    Args:
        f: the function, from (batch, M, *space) to (batch, N, *space').
        shape: its input shape in the network.
        out_shape: its output shape there.
        field: stride, first and last tap of each axis.
        dtype: the floating type in which to run it.
        resize: whether to probe at a size that suits the probe instead of ``shape``.

    Raises:
        NotOneKernelError: no padding gives an output of ``out_shape`` with these reads, or f answers with other shapes.
    """
    axes = tuple(reaching_zero(axis) for axis in field.axes)
    padding = tuple(padding_of(axis, shape[2 + index], out_shape[2 + index]) for index, axis in enumerate(axes))
    blocks = field.blocks_of(shape[1], out_shape[1])
    inputs = shape[1] // blocks
    cells = inputs + 1
    while True:
        lines = [
            (_roomy if resize else _tight)(axis, shape[2 + index], out_shape[2 + index], count)
            for index, (axis, count) in enumerate(zip(axes, _grid(cells, len(axes)), strict=True))
        ]
        # Fewer impulses an image where an image of all of them would be huge: more images of less.
        if cells == 1 or shape[1] * math.prod(line.size for line in lines) <= _CHUNK:
            break
        cells = math.ceil(cells / 4)
    weight, bias = _shoot(f, shape[1], out_shape[1], blocks, lines, [axis.extent for axis in axes], dtype)
    return Kernel(weight, bias, tuple(axis.stride for axis in axes), padding, (1,) * len(axes), blocks)


def macs_by_sample(f: Function, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, bool]:
    """About how many multiply-accumulates the linear map f is: one for each output element that each input element reaches.

    Counted for some of the input elements of an image of ``shape``, (batch, M, *space); and whether all of these reach as many.
    """
    generator = torch.Generator().manual_seed(0)
    elements = math.prod(shape[1:])
    batch = torch.zeros(_SAMPLED + 1, elements, dtype=dtype)  # the last image stays dark
    batch[torch.arange(_SAMPLED), torch.randint(elements, (_SAMPLED,), generator=generator)] = _HEIGHT
    out = f(batch.view(-1, *shape[1:])).flatten(1)
    response = (out[:-1] - out[-1]).abs()
    reached = response > 1e-3 * response.amax(1, keepdim=True)
    counts = reached.sum(1)
    return int(counts.double().mean() * elements), bool((counts == counts[0]).all())


def reaching_zero(axis: Axis) -> Axis:
    """The axis, made to hold the position of its own output: taps before or after it become padding that is not negative."""
    return Axis(axis.stride, min(axis.first, 0), max(axis.last, 0))


def padding_of(axis: Axis, size: int, outputs: int) -> tuple[int, int]:
    """Padding before and after with which a convolution of these reads has this many outputs; symmetric where it can be."""
    before = -axis.first
    after = max(0, (outputs - 1) * axis.stride + axis.last - (size - 1))
    steps, rest = divmod(size + before + after - axis.extent, axis.stride)
    if steps + 1 != outputs:
        raise NotOneKernelError(f"its output has {outputs} lines where one convolution of its reads has another number")
    # A stride leaves lines at the end unread; padding that only adds to them changes nothing.
    unread = axis.stride - 1 - rest
    return before, before if after <= before <= after + unread else after


def _grid(count: int, ndim: int) -> tuple[int, ...]:
    """A grid of at least ``count`` cells over two images, near to a square."""
    half = math.ceil(count / 2)
    if ndim == 1:
        return (half,)
    side = math.ceil(math.sqrt(half))
    return (side, math.ceil(half / side))


def _step(axis: Axis) -> int:
    """The distance of impulses whose responses do not overlap."""
    return axis.stride * math.ceil(axis.extent / axis.stride)


def _roomy(axis: Axis, size: int, outputs: int, cells: int) -> Line:
    """A line as long as ``cells`` impulses need, of a length that a dynamic padding treats as the real one.

    The impulses keep away from the border: one that reflects or wraps repeats what is near to it.
    """
    step, start = _step(axis), axis.last + axis.extent
    needed = start + 2 * axis.stride + (cells - 1) * step + 2 * axis.extent
    modulus = math.lcm(axis.stride, 8)
    length = size + math.ceil((needed - size) / modulus) * modulus
    wide = outputs + (length - size) // axis.stride
    shots = _phases(axis, start, wide)
    return Line(length, wide, shots, cells, step, step // axis.stride)


def _tight(axis: Axis, size: int, outputs: int, cells: int) -> Line:
    """A line of the real length, with as many of the ``cells`` as fit.

    Where not even one does, a few impulses at chosen places show every tap that this length can show.
    """
    step = _step(axis)
    for margin in (axis.extent, 0):
        start = axis.last + margin
        room = min(size - 1, (outputs - 1) * axis.stride + axis.first) - margin - (start + axis.stride - 1)
        if room < 0:
            continue
        shots = _phases(axis, start, outputs)
        return Line(size, outputs, shots, min(cells, room // step + 1), step, step // axis.stride)
    middle = size / 2
    options = {i: _responses(axis, i, outputs) for i in sorted(range(size), key=lambda i: abs(i - middle))}
    missing = {tap for shown in options.values() for tap, _ in shown}
    chosen = []
    while missing:
        best = max(options, key=lambda i: len(missing & {tap for tap, _ in options[i]}))
        chosen.append((best, options[best]))
        missing -= {tap for tap, _ in options[best]}
    return Line(size, outputs, tuple(chosen), 1, 0, 0)


def _phases(axis: Axis, start: int, outputs: int) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
    """The impulses of one cell; a stride longer than the kernel skips inputs, where an impulse shows nothing."""
    positions = range(start, start + axis.stride)
    return tuple((i, responses) for i in positions if (responses := _responses(axis, i, outputs)))


def _responses(axis: Axis, position: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """The (tap, output) pairs that an impulse at ``position`` shows."""
    pairs = []
    for tap in range(axis.extent):
        q, rest = divmod(position - axis.first - tap, axis.stride)
        if rest == 0 and 0 <= q < outputs:
            pairs.append((tap, q))
    return tuple(pairs)


def _shoot(
    f: Function, channels: int, out_channels: int, blocks: int, lines: list[Line], extents: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight (N, M / blocks, *extents) and bias (N,)."""
    inputs = channels // blocks
    weight = torch.zeros(out_channels, inputs, *extents, dtype=dtype)
    bias: Tensor | None = None
    places = list(itertools.product(*(range(line.cells) for line in lines)))
    shots = list(itertools.product(*(line.shots for line in lines)))
    sizes = [line.size for line in lines]
    images = math.ceil((inputs + 1) / len(places))
    at_once = max(2, _CHUNK // (channels * math.prod(sizes)))
    for shot in shots:
        for start in range(0, images, at_once):
            count = min(at_once, images - start)
            # Never a batch of one: code may treat it as a case of its own.
            batch = torch.zeros(max(2, count), blocks, inputs, *sizes, dtype=dtype)
            lit = list(_cells(start, count, len(places), inputs))
            for image, place, channel in lit:
                if channel < inputs:
                    spot: Any = (image, slice(None), channel, *_position(lines, shot, places[place]))
                    batch[spot] = _HEIGHT
            out = f(batch.view(-1, channels, *sizes))
            if out.shape != (len(batch), out_channels, *(line.outputs for line in lines)):
                raise NotOneKernelError(
                    f"its output has shape {tuple(out.shape)} for an input of {(len(batch), channels, *sizes)}"
                )
            dark = [(image, place) for image, place, channel in lit if channel == inputs]
            for image, place in dark:
                spot = (image, slice(None), *_outputs(lines, shot, places[place])[0][1])
                bias = out[spot].clone()
            _read(out, weight, lit, lines, shot, places, inputs)
    assert bias is not None
    seen = torch.zeros(extents, dtype=torch.bool)
    for shot in shots:
        for tap, _ in _outputs(lines, shot, (0,) * len(lines)):
            seen[tap] = True
    weight = torch.where(seen, (weight - bias.view(-1, *(1,) * (weight.ndim - 1))) / _HEIGHT, 0)
    return _snapped(weight, bias), bias


def _cells(start: int, count: int, places: int, inputs: int) -> Iterator[tuple[int, int, int]]:
    """(image of the batch, place, channel) for the images from ``start``; channel ``inputs`` is the dark cell."""
    for image in range(count):
        for place in range(places):
            channel = (start + image) * places + place
            if channel <= inputs:
                yield image, place, channel


def _position(
    lines: list[Line], shot: tuple[tuple[int, tuple[tuple[int, int], ...]], ...], place: tuple[int, ...]
) -> tuple[int, ...]:
    return tuple(i + cell * line.step for line, (i, _), cell in zip(lines, shot, place, strict=True))


def _outputs(
    lines: list[Line], shot: tuple[tuple[int, tuple[tuple[int, int], ...]], ...], place: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The (taps, output position) pairs that one impulse shows."""
    return [
        (
            tuple(tap for tap, _ in pairs),
            tuple(q + cell * line.shift for line, (_, q), cell in zip(lines, pairs, place, strict=True)),
        )
        for pairs in itertools.product(*(responses for _, responses in shot))
    ]


def _read(
    out: Tensor,
    weight: Tensor,
    lit: list[tuple[int, int, int]],
    lines: list[Line],
    shot: tuple[tuple[int, tuple[tuple[int, int], ...]], ...],
    places: list[tuple[int, ...]],
    inputs: int,
) -> None:
    """Copies the responses to their taps in ``weight``, all channels of a tap at once."""
    lit = [cell for cell in lit if cell[2] < inputs]
    if not lit:
        return
    images = torch.tensor([image for image, _, _ in lit])
    channels = torch.tensor([channel for _, _, channel in lit])
    for taps, base in _outputs(lines, shot, (0,) * len(lines)):
        position = [
            torch.tensor([base[axis] + places[place][axis] * line.shift for _, place, _ in lit])
            for axis, line in enumerate(lines)
        ]
        into: Any = (slice(None), channels, *taps)
        source: Any = (slice(None), images, *position)
        weight[into] = out.transpose(0, 1)[source]


def _snapped(weight: Tensor, bias: Tensor) -> Tensor:
    """The weight with what is only rounding set to zero: structure is read from zeros."""
    eps = torch.finfo(weight.dtype).eps
    scale = weight.abs().flatten(1).amax(dim=1) + bias.abs() / _HEIGHT
    limit = 32 * eps * scale.view(-1, *(1,) * (weight.ndim - 1))
    return torch.where(weight.abs() <= limit, 0, weight)
