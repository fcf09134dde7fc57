"""HetConv: filters made of heterogeneous kernels (Singh et al., CVPR 2019, arXiv:1903.04120).

Filter n has a K×K kernel at the inputs m with (m − n) mod P = 0 and a 1×1 kernel, at the centre tap, at all others:

    y[n] = Σ_{m ≡ n (mod P)} W[n, m] ⋆ x[m]  +  Σ_{m ≢ n (mod P)} w[n, m] · x[m]  +  b[n]

Parameters without bias: Σₙ (cₙK² + M − cₙ) with cₙ = #{m : m ≡ n mod P}; N·(M/P·K² + M − M/P) when P divides M. The cost
ratio to a standard convolution is then 1/P + (1 − 1/P)/K². `HetConv2d` holds one masked dense weight, which is the form to train;
`NaiveHetConv2d` is the loop over N·M one-channel convolutions in which the block is often written: slow, and the reference
of the tests.
"""

from __future__ import annotations

import math
from typing import Final, Self

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import (
    Geometry,
    IntPair,
    centre_offset,
    check_channels,
    check_convolution,
    check_geometry,
    check_places,
    check_positive,
    crop,
)
from edgefold.models.blocks.masked import MaskedConv2d

_BITS: Final = 63  # of the integers that torch computes with


def hetconv_full(in_channels: int, out_channels: int, p: int) -> Tensor:
    """Where the kernels are K×K: bool, (N, M), true iff (m − n) mod P = 0.

    Raises:
        UsageError: a number is no integer of at least 1, or ``p`` has more than 63 bits.
    """
    check_channels("HetConv2d", in_channels, out_channels)
    check_positive("HetConv2d", "p", p)
    if int(p) >= 1 << _BITS:
        raise UsageError(f"HetConv2d: p is {p}, expected less than 2^{_BITS}; from in_channels on, a larger p changes nothing")
    n = torch.arange(out_channels).unsqueeze(1)  # (N, 1)
    m = torch.arange(in_channels).unsqueeze(0)  # (1, M)
    return (m - n) % p == 0


def hetconv_mask(in_channels: int, out_channels: int, kernel_size: IntPair, p: int) -> Tensor:
    """Where weights exist: bool, (N, M, Kh, Kw).

    Raises:
        UsageError: ``p`` is below 1, or a side of the kernel is even, so that it has no centre.
    """
    height, width = _checked("HetConv2d", in_channels, out_channels, kernel_size, p).kernel_size
    mask = hetconv_full(in_channels, out_channels, p)[:, :, None, None].repeat(1, 1, height, width)
    mask[:, :, height // 2, width // 2] = True
    return mask


def _checked(block: str, in_channels: int, out_channels: int, kernel_size: IntPair, p: int, bias: bool = False) -> Geometry:
    """The geometry, once all arguments are known to be possible."""
    geometry = check_convolution(block, in_channels, out_channels, kernel_size, bias=bias)
    check_positive(block, "p", p)
    centre_offset(block, geometry)  # refuses even kernels
    return geometry


def hetconv_parameters(in_channels: int, out_channels: int, kernel_size: IntPair, p: int, bias: bool = False) -> int:
    """Weights of the layer, any P: Σₙ (cₙK² + M − cₙ), plus N with a bias."""
    taps = _checked("HetConv2d", in_channels, out_channels, kernel_size, p, bias).taps
    weights = 0
    for n in range(out_channels):
        full = len(range(n % p, in_channels, p))  # cₙ
        weights += full * taps + in_channels - full
    return weights + (out_channels if bias else 0)


def hetconv_macs(in_channels: int, out_channels: int, kernel_size: IntPair, p: int, output_size: tuple[int, int]) -> int:
    """Multiply-accumulates for one sample with an output of (H', W'). The paper counts one as one FLOP."""
    places = check_places("HetConv2d", "output_size", output_size)
    return hetconv_parameters(in_channels, out_channels, kernel_size, p) * places


class HetConv2d(MaskedConv2d):
    """HetConv as one masked dense weight (Singh et al., CVPR 2019).

    Initialisation: that of `MaskedConv2d`, Kaiming normal for ReLU, filter by filter, with the fan-in cₙK² + M − cₙ of the
    weights that exist; the bias zero.

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: K or (Kh, Kw), odd.
        stride: s or (sh, sw).
        padding: zeros on each side.
        dilation: of the K×K kernels.
        bias: whether there is a bias.
        p: the part P, by name; each filter has K×K kernels at one in P of its inputs. P need not divide M.

    Raises:
        UsageError: an argument is out of range, or the kernel has an even side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = True,
        *,
        p: int,
    ) -> None:
        mask = hetconv_mask(in_channels, out_channels, kernel_size, p)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias, mask=mask)
        self.p = p

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, p={self.p}"


class NaiveHetConv2d(nn.Module):
    """HetConv as a loop over N·M one-channel convolutions; the arguments are those of `HetConv2d`.

    ``kernels[n][m]`` is a K×K or a 1×1 `torch.nn.Conv2d` from one channel to one. The centre tap of a K×K kernel reads
    x[s·i − p + d(K−1)/2], so that a 1×1 kernel needs the padding p − d(K−1)/2; where that is negative, the image is cropped.

    Initialisation: that of `HetConv2d`, with each filter's fan-in over all its kernels; the bias zero.

    Raises:
        UsageError: an argument is out of range, or the kernel has an even side; when it is called: the input has another
            number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        bias: bool = True,
        *,
        p: int,
    ) -> None:
        super().__init__()
        _checked("NaiveHetConv2d", in_channels, out_channels, kernel_size, p, bias)
        geometry = check_geometry("NaiveHetConv2d", kernel_size, stride, padding, dilation)
        mask = hetconv_mask(in_channels, out_channels, kernel_size, p)
        full = hetconv_full(in_channels, out_channels, p)
        offset = centre_offset("NaiveHetConv2d", geometry)
        self.crop = offset.crop
        self.in_channels = in_channels

        def kernel(n: int, m: int) -> nn.Conv2d:
            if full[n, m]:
                return nn.Conv2d(1, 1, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, bias=False)
            return nn.Conv2d(1, 1, 1, geometry.stride, offset.padding, bias=False)

        self.kernels = nn.ModuleList(nn.ModuleList(kernel(n, m) for m in range(in_channels)) for n in range(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        fan_in = mask.flatten(1).sum(1)
        for n, row in enumerate(self.kernels):
            for convolution in self._row(row):
                nn.init.normal_(convolution.weight, std=math.sqrt(2.0 / int(fan_in[n])))

    @staticmethod
    def _row(row: nn.Module) -> list[nn.Conv2d]:
        return [convolution for convolution in row.children() if isinstance(convolution, nn.Conv2d)]

    @classmethod
    def from_masked(cls, masked: HetConv2d) -> Self:
        """The loop form with the weights of a masked layer."""
        naive = cls(
            masked.in_channels,
            masked.out_channels,
            masked.kernel_size,
            masked.stride,
            masked.padding,
            masked.dilation,
            masked.bias is not None,
            p=masked.p,
        ).to(masked.weight)
        height, width = masked.kernel_size
        weight = masked.dense_weight().detach()
        with torch.no_grad():
            for n, row in enumerate(naive.kernels):
                for m, convolution in enumerate(cls._row(row)):
                    whole = tuple(convolution.kernel_size) == masked.kernel_size
                    taps = weight[n, m] if whole else weight[n, m, height // 2, width // 2].view(1, 1)
                    convolution.weight.copy_(taps[None, None])
            if naive.bias is not None and masked.bias is not None:
                naive.bias.copy_(masked.bias)
        return naive

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:  # the loop would leave further channels out
            raise UsageError(
                f"NaiveHetConv2d: the input has the shape {tuple(x.shape)}, "
                f"expected (batch, channels, height, width) with {self.in_channels} channels"
            )
        cropped = crop(x, self.crop)
        outputs = []
        for row in self.kernels:
            total: Tensor | None = None
            for m, convolution in enumerate(self._row(row)):
                image = cropped if convolution.kernel_size == (1, 1) else x
                term = convolution(image[:, m : m + 1])
                total = term if total is None else total + term
            assert total is not None  # in_channels >= 1
            outputs.append(total)
        y = torch.cat(outputs, dim=1)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)
