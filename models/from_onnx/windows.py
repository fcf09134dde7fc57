"""The geometry that convolutions and pools share: ``auto_pad``, uneven pads, and what torch needs in their place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgefold.models.from_onnx.op import Op


@dataclass(frozen=True, slots=True)
class Windows:
    """Kernel sides, strides, dilations and pads before and after, one entry a spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether the pads before and after are equal."""
        return self.before == self.after

    @property
    def pads(self) -> list[int]:
        """The pads as `torch.nn.functional.pad` takes them: last dimension first."""
        return [pad for pair in zip(reversed(self.before), reversed(self.after), strict=True) for pad in pair]

    def spans(self) -> tuple[int, ...]:
        """How far each window reaches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def outputs(self, size: tuple[int, ...], ceil: bool = False) -> tuple[int, ...]:
        """How many windows there are for an input of the size; the last one begins inside of the input or the pad before it."""
        found = []
        for n, span, s, b, a in zip(size, self.spans(), self.stride, self.before, self.after, strict=True):
            steps = (n + b + a - span) / s
            count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
            found.append(count - 1 if ceil and (count - 1) * s >= n + b else count)
        return tuple(found)


def windows(op: Op, kernel: tuple[int, ...], size: tuple[int, ...]) -> Windows:
    """The windows of an op over an input of a spatial size."""
    rank = len(kernel)
    if rank not in (1, 2) or len(size) != rank:
        op.refuse(f"works over {len(size)} dimensions with a kernel of {rank}, expected one or two of both")
    stride = tuple(op.int_list("strides") or [1] * rank)
    dilation = tuple(op.int_list("dilations") or [1] * rank)
    pads = op.int_list("pads") or [0] * (2 * rank)
    if len(stride) != rank or len(dilation) != rank or len(pads) != 2 * rank or min(*kernel, *stride, *dilation) < 1:
        op.refuse("has strides, dilations or pads that do not fit its kernel")
    if min(pads) < 0:
        op.refuse("has negative pads")
    auto = op.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return Windows(kernel, stride, dilation, tuple(before), tuple(after))
    if auto == "VALID":
        pads = [0] * (2 * rank)
    elif auto != "NOTSET":
        op.refuse(f"has auto_pad '{auto}'")
    return Windows(kernel, stride, dilation, tuple(pads[:rank]), tuple(pads[rank:]))
