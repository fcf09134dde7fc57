"""What the time of a layer depends on, as plain data: the key of a cost table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

from edgefold.errors import ArtifactError
from edgefold.export.plan import Lowering


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """A convolution, the zero structure of its weight and the size of its input, for one sample.

    ``groups`` are the sizes (inputs, outputs) of the channel groups that have full kernels, () where all channels do;
    ``point`` says whether there are centre taps outside of the groups.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    space: tuple[int, ...]
    groups: tuple[tuple[int, int], ...] = ()
    point: bool = False

    @property
    def out_space(self) -> tuple[int, ...]:
        """The sizes of the output's spatial dimensions."""
        return tuple(
            (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for size, pad, dilation, taps, stride in zip(
                self.space, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )

    @property
    def widest_group(self) -> tuple[int, int]:
        """The most inputs and the most outputs that a group has."""
        return max(reads for reads, _ in self.groups), max(writes for _, writes in self.groups)

    @property
    def equal_groups(self) -> bool:
        """Whether one group convolution can compute all groups."""
        return len(set(self.groups)) == 1

    @property
    def groupable(self) -> bool:
        """Whether one group convolution can compute all groups, unequal ones padded, with no more work than a dense one."""
        return self.equal_groups or (len(self.groups) > 1 and self.macs(Lowering.GROUPED) <= self.macs(Lowering.DENSE))

    def form(self, lowering: Lowering) -> Lowering:
        """The lowering under which this layer is measured: what it keeps is a group convolution or a plain one."""
        if not self.groups:
            return Lowering.DENSE
        return Lowering.GROUPED if lowering is Lowering.KEEP else lowering

    def weights(self, lowering: Lowering) -> int:
        """The number of weights that a lowering keeps (without bias); a group convolution pads all groups to the largest."""
        taps = math.prod(self.kernel)
        if lowering is Lowering.DENSE or not self.groups:
            return self.in_channels * self.out_channels * taps
        if lowering is Lowering.SPLIT:
            grouped = sum(reads * writes for reads, writes in self.groups) * taps
        else:
            grouped = len(self.groups) * math.prod(self.widest_group) * taps
        return grouped + (self.in_channels * self.out_channels if self.point else 0)

    def macs(self, lowering: Lowering) -> int:
        """Multiply-accumulates of a lowering."""
        return self.weights(lowering) * math.prod(self.out_space)

    def __str__(self) -> str:
        text = (
            f"{self.in_channels}->{self.out_channels} k{_by(self.kernel)} s{_by(self.stride)} p{_by(self.padding)} "
            f"d{_by(self.dilation)} @{_by(self.space)}"
        )
        if self.groups:
            runs = [f"{self.groups.count(size)}*{size[0]}->{size[1]}" for size in dict.fromkeys(self.groups)]
            text += f" g{'+'.join(runs)}"
        return text + (" +point" if self.point else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The geometry that ``str`` wrote; groups of one size are then next to each other.

        Raises:
            ArtifactError: the text is no geometry.
        """
        number, run = r"(\d+(?:x\d+)*)", r"\d+\*\d+->\d+"
        pattern = rf"(\d+)->(\d+) k{number} s{number} p{number} d{number} @{number}(?: g({run}(?:\+{run})*))?( \+point)?"
        match = re.fullmatch(pattern, text)
        if match is None:
            raise ArtifactError(f"cost table: '{text}' is no layer geometry, expected e.g. '8->8 k3x3 s1x1 p1x1 d1x1 @14x14'")
        groups: list[tuple[int, int]] = []
        for part in match[8].split("+") if match[8] else ():
            count, sizes = part.split("*")
            reads, writes = sizes.split("->")
            groups += [(int(reads), int(writes))] * int(count)
        kernel, stride, padding, dilation, space = (tuple(map(int, match[index].split("x"))) for index in range(3, 8))
        return cls(int(match[1]), int(match[2]), kernel, stride, padding, dilation, space, tuple(groups), match[9] is not None)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
