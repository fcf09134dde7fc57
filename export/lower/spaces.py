"""Channel orders as unknowns, and the solver for them.

A tensor's channels may be stored in any order as long as everyone who reads them agrees. The order of a tensor is
therefore an unknown, written as a `Layout`: a sequence of segments, each a `Space` (an unknown order of ``size``
elements) with the channels of the tensor that its elements are. Two tensors whose channels must be stored in the same
order (the operands of an add) share spaces after `Solver.unify`; a concatenation is the sequence of its operands'
segments; a channel split is a part of a sequence; a channel shuffle is the same sequence with other channel numbers,
so it moves no data.

Wishes refine spaces: `Solver.arrange` makes the channel groups of a group convolution contiguous by cutting spaces
into ordered parts whose inner order stays free. A wish that does not fit leaves the solver as it was and returns the
reason; the caller then pays a gather. What is never constrained keeps its natural order, so a network without wishes
is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_RUNS = 16  # pieces of a fixed order that a selection may take


class Space:
    """An unknown order of ``size`` elements; ``fixed`` ones keep the order of their element numbers.

    ``parts`` is set once more is known: a sequence of (space, elements), ``elements[i]`` being the element of this space that
    element ``i`` of the part stands for.
    """

    __slots__ = ("fixed", "parts", "size")

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed
        self.parts: list[tuple[Space, Indices]] | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a tensor's channels: element ``i`` of ``space`` is the tensor's channel ``channels[i]``."""

    space: Space
    channels: Indices


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of the entries along one axis of a tensor.

    ``repeat`` entries follow each other for every channel (a flattened (C, H, W) has ``repeat`` = H * W).
    """

    parts: tuple[Segment, ...]
    axis: int = 1
    repeat: int = 1

    @classmethod
    def free(cls, size: int, axis: int = 1) -> Layout:
        """Channels that may be stored in any order."""
        return cls((Segment(Space(size), np.arange(size)),), axis)

    @classmethod
    def natural(cls, size: int, axis: int = 1) -> Layout:
        """Channels that are stored in their own order, come what may."""
        return cls((Segment(Space(size, fixed=True), np.arange(size)),), axis)

    @property
    def channels(self) -> int:
        """The number of channels, without ``repeat``."""
        return sum(part.space.size for part in self.parts)

    @property
    def size(self) -> int:
        """The size of the tensor along the axis."""
        return self.channels * self.repeat

    @property
    def fixed(self) -> bool:
        """Whether the order was given from the start."""
        return all(part.space.fixed for part in self.parts)

    def segments(self) -> list[Segment]:
        """The segments as far as they are known now."""
        return [segment for part in self.parts for segment in _resolve(part.space, part.channels)]

    def order(self) -> Indices:
        """``order[i]`` is the channel that is stored at position ``i``; shape (size,)."""
        base = np.concatenate([segment.channels for segment in self.segments()]) if self.parts else np.arange(0)
        return (base[:, None] * self.repeat + np.arange(self.repeat)).ravel()

    def moved(self, axis: int) -> Layout:
        """The same channels along another axis."""
        return Layout(self.parts, axis, self.repeat)

    def repeated(self, repeat: int) -> Layout:
        """The same channels with another number of entries a channel."""
        return Layout(self.parts, self.axis, repeat)

    def relabelled(self, permutation: Indices) -> Layout:
        """The layout of ``y[c] = x[permutation[c]]``, stored as ``x`` is: the same segments under new channel numbers."""
        inverse = np.argsort(permutation)
        return Layout(tuple(Segment(part.space, inverse[part.channels]) for part in self.segments()), self.axis)


def concatenated(layouts: Sequence[Layout]) -> Layout:
    """The layout of a concatenation along the axis of the operands, which have equal ``axis`` and ``repeat``."""
    parts, offset = [], 0
    for layout in layouts:
        parts += [Segment(part.space, part.channels + offset) for part in layout.parts]
        offset += layout.channels
    return Layout(tuple(parts), layouts[0].axis, layouts[0].repeat)


def _resolve(space: Space, channels: Indices) -> Iterator[Segment]:
    if space.parts is None:
        yield Segment(space, channels)
        return
    for part, elements in space.parts:
        yield from _resolve(part, channels[elements])


class Solver:
    """Gathers what is known of the spaces. Every method either succeeds, or changes nothing and returns the reason."""

    def __init__(self) -> None:
        self._journal: list[Space] = []

    def mark(self) -> int:
        """A point to which `undo` can go back."""
        return len(self._journal)

    def undo(self, mark: int) -> None:
        """Forgets everything learnt since ``mark``."""
        while len(self._journal) > mark:
            self._journal.pop().parts = None

    def unify(self, first: Layout, second: Layout) -> str | None:
        """Lets two tensors store their channels in the same order."""
        if (first.channels, first.repeat) != (second.channels, second.repeat):
            return (
                f"{first.channels} channels of {first.repeat} entries cannot share the order of "
                f"{second.channels} channels of {second.repeat}"
            )
        mark = self.mark()
        while True:
            pair = _first_difference(first.segments(), second.segments())
            if pair is None:
                return None
            if not self._match(*pair):
                self.undo(mark)
                return "the two operands store their channels in orders that cannot be made equal"

    def _match(self, one: Segment, other: Segment) -> bool:
        if one.space.size > other.space.size:
            one, other = other, one
        small, large = one.space, other.space
        if small is large:
            return False  # the same space under two numberings
        if small.size == large.size:
            if small.fixed and large.fixed:
                # Both numberings ascend with the storage order, so equal channels make them one space.
                return bool((one.channels == other.channels).all()) and self._alias(small, large, np.arange(small.size))
            if large.fixed:
                one, other, small, large = other, one, large, small
            elements = _find(other.channels, one.channels)
            return elements is not None and self._alias(large, small, elements)
        head = np.isin(other.channels, one.channels)
        if head.sum() != small.size:
            return False
        return self._cut(large, [np.flatnonzero(head), np.flatnonzero(~head)])

    def _alias(self, space: Space, target: Space, elements: Indices) -> bool:
        self._set(space, [(target, elements)])
        return True

    def _cut(self, space: Space, pieces: Sequence[Indices]) -> bool:
        """Cuts a space into ordered parts; a fixed one only where its order has them already."""
        if space.fixed and not (np.concatenate(pieces) == np.arange(space.size)).all():
            return False
        self._set(space, [(Space(len(piece), fixed=space.fixed), piece) for piece in pieces])
        return True

    def _set(self, space: Space, parts: list[tuple[Space, Indices]]) -> None:
        space.parts = parts
        self._journal.append(space)

    def arrange(self, layouts: Sequence[Layout], groups: Sequence[Sequence[Indices]]) -> list[int] | str:
        """Makes groups of channels contiguous in several tensors, in one common sequence.

        Args:
            layouts: the tensors, e.g. input and output of a group convolution; ``repeat`` must be 1.
            groups: for each tensor the channels of each group; together they are all of its channels.

        Returns:
            the sequence of the groups as they are stored, or the reason why there is none.
        """
        mark = self.mark()
        sequence: list[int] | str = list(range(len(groups[0])))
        if any(layout.repeat != 1 for layout in layouts):
            return "flattened channels cannot be grouped"
        # The last round runs with every space cut, so it proves the sequence for tensors that share spaces.
        for final in (False, True):
            choices = []
            for layout, members in zip(layouts, groups, strict=True):
                blocks = _blocks(layout.segments(), _owners(members, layout.channels))
                if isinstance(blocks, str):
                    self.undo(mark)
                    return blocks
                choices.append(blocks)
            sequence = _common_sequence(choices)
            if isinstance(sequence, str):
                self.undo(mark)
                return sequence
            for layout, members in zip(layouts, groups, strict=True):
                if not final and not self._cut_groups(layout, _owners(members, layout.channels), sequence):
                    self.undo(mark)
                    return "the channel order is fixed and does not have the groups together"
        return sequence

    def _cut_groups(self, layout: Layout, owners: Indices, sequence: Sequence[int]) -> bool:
        rank = {group: position for position, group in enumerate(sequence)}
        changed = True
        while changed:  # a tensor may hold a space twice, and the second place may cut its parts again
            changed = False
            for segment in layout.segments():
                inside = owners[segment.channels]
                found = sorted(np.unique(inside).tolist(), key=rank.__getitem__)
                if len(found) < 2 or segment.space.parts is not None:
                    continue
                if not self._cut(segment.space, [np.flatnonzero(inside == group) for group in found]):
                    return False
                changed = True
        return True

    def slice(self, layout: Layout, start: int, stop: int) -> Layout | str:
        """The layout of channels ``start`` to ``stop`` (exclusive), which are made contiguous at that very place."""
        mark = self.mark()
        where = np.arange(layout.channels)
        owners = (where >= start).astype(np.int64) + (where >= stop)
        if layout.repeat != 1 or not self._cut_groups(layout, owners, [0, 1, 2]):
            self.undo(mark)
            return "the channel order does not allow a slice there"
        segments = layout.segments()
        placed = [int(owners[segment.channels[0]]) for segment in segments]
        if placed != sorted(placed):
            self.undo(mark)
            return "the channels of the slice are not stored together"
        inside = [segment for segment, place in zip(segments, placed, strict=True) if place == 1]
        return Layout(tuple(Segment(part.space, part.channels - start) for part in inside), layout.axis)

    def select(self, layout: Layout, channels: Indices) -> Layout | str:
        """The layout of a selection of distinct channels, stored in runs that need not lie together.

        Channel ``channels[i]`` of the tensor is channel ``i`` of the result.
        """
        if layout.repeat != 1:
            return "flattened channels cannot be selected one by one"
        mark = self.mark()
        place = np.full(layout.channels, -1)
        place[channels] = np.arange(len(channels))
        while mixed := next((one for one in layout.segments() if len(np.unique(place[one.channels] >= 0)) > 1), None):
            inside = place[mixed.channels] >= 0
            if mixed.space.fixed:
                pieces = np.split(np.arange(len(inside)), np.flatnonzero(np.diff(inside)) + 1)
            else:
                pieces = [np.flatnonzero(inside), np.flatnonzero(~inside)]
            if len(pieces) > _RUNS or not self._cut(mixed.space, pieces):
                self.undo(mark)
                return "the selected channels are scattered"
        found = [one for one in layout.segments() if place[one.channels[0]] >= 0]
        return Layout(tuple(Segment(one.space, place[one.channels]) for one in found), layout.axis)


def _first_difference(first: Sequence[Segment], second: Sequence[Segment]) -> tuple[Segment, Segment] | None:
    for one, other in zip(first, second, strict=False):
        if one.space is not other.space or not np.array_equal(one.channels, other.channels):
            return one, other
    return None


def _find(haystack: Indices, needles: Indices) -> Indices | None:
    """Where each of ``needles`` is in ``haystack`` (distinct values), or None if one is missing."""
    order = np.argsort(haystack)
    found = order[np.minimum(np.searchsorted(haystack, needles, sorter=order), len(haystack) - 1)]
    return found if np.array_equal(haystack[found], needles) else None


def _owners(members: Sequence[Indices], channels: int) -> Indices:
    owners = np.full(channels, -1)
    for group, indices in enumerate(members):
        owners[indices] = group
    return owners


def _blocks(segments: Sequence[Segment], owners: Indices) -> list[list[int]] | str:
    """The groups in storage order; groups in one inner list may still be put in any order."""
    blocks: list[list[int]] = []
    closed: set[int] = set()
    for segment in segments:
        inside = owners[segment.channels]
        if segment.space.fixed:  # its runs are in order already
            runs = inside[np.flatnonzero(np.diff(inside, prepend=inside[0] - 1))]
            found = [[int(group)] for group in runs]
        else:
            found = [np.unique(inside).tolist()]
        for block in found:
            if blocks and blocks[-1] == block and len(block) == 1:
                continue  # a group may lie over several segments
            if closed.intersection(block):
                return "the channels of a group cannot be stored together"
            closed.update(block)
            blocks.append(block)
    return blocks


def _common_sequence(choices: Sequence[list[list[int]]]) -> list[int] | str:
    """One sequence of groups that fits every list of blocks."""
    rest = [[set(block) for block in blocks] for blocks in choices]
    sequence: list[int] = []
    while rest[0]:
        common = set.intersection(*(blocks[0] for blocks in rest))
        smallest = min((blocks[0] for blocks in rest), key=len)
        if common != smallest:
            return "input and output store the groups in different sequences"
        sequence += sorted(common)
        for blocks in rest:
            blocks[0] -= common
            if not blocks[0]:
                blocks.pop(0)
    return sequence
