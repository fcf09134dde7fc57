"""Where the 1×1 branch of a convolution reads.

Output i of a convolution reads its tap c, at most K // 2, at input position i·s + c·d − p. A 1×1 convolution
with the same stride reads at i·s − q, so q = p − c·d: zero for the centre of an odd kernel with 'same' padding. A positive q
is padding of the 1×1 convolution, a negative one crops the start of its input. Where at least as many taps follow
c as come before it, the last output needs no input beyond those that q makes available: the output may come
out too long, and is then cropped at its end, but never too short. The second middle tap of an even kernel (padded at its
start, as a rule by a pad of its own) may lack input; then there is no placement.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.export.lower.conv import Conv


@dataclass(frozen=True, slots=True)
class PointPlacement:
    """How to apply the 1×1, by dimension: skip ``crop`` entries, pad by ``padding``, keep ``keep`` outputs (None: all)."""

    tap: tuple[int, ...]
    crop: tuple[int, ...]
    padding: tuple[int, ...]
    keep: tuple[int | None, ...]


def place_point(conv: Conv, taps: tuple[int, ...]) -> PointPlacement | None:
    """The placement for the tap ``taps`` of a convolution, none of which is behind the middle; None if there is none."""
    crops, paddings, keeps = [], [], []
    for dim, tap in enumerate(taps):
        shift = conv.padding[dim] - tap * conv.dilation[dim]
        crop, padding = max(-shift, 0), max(shift, 0)
        length = (conv.in_space[dim] - crop + 2 * padding - 1) // conv.stride[dim] + 1
        if length < conv.out_space[dim]:
            return None
        crops.append(crop)
        paddings.append(padding)
        keeps.append(conv.out_space[dim] if length > conv.out_space[dim] else None)
    return PointPlacement(taps, tuple(crops), tuple(paddings), tuple(keeps))
