"""Published ways to write a linear convolution, each implemented here from its paper's description.

HetConv (Singh et al., CVPR 2019) in eight ways of writing the same thing, DualConv (Zhong et al., 2022), channel-local
convolutions (Gao et al., ChannelNets, NeurIPS 2018), RepVGG (Ding et al., CVPR 2021), MobileOne (Vasu et al., CVPR 2023), DBB
(Ding et al., CVPR 2021), ACNet (Ding et al., ICCV 2019), weight normalisation, im2col, and convolutions with BatchNorm.
Each form is one convolution; `FORMS` maps its name to a builder of (module, input shape).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from branch_forms import DBB, ACNet, K, M, MobileOne, N, RepVGG, norm
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

P, SIZE = 4, 14
Form = tuple[nn.Module, tuple[int, ...]]


def full_kernels(inputs: int, outputs: int, parts: int) -> Tensor:
    """Where HetConv has K x K kernels: bool (outputs, inputs)."""
    return (torch.arange(inputs) - torch.arange(outputs)[:, None]) % parts == 0


def hetconv_mask(inputs: int, outputs: int, parts: int) -> Tensor:
    """Float (outputs, inputs, K, K): one where HetConv has a weight."""
    mask = full_kernels(inputs, outputs, parts)[:, :, None, None].repeat(1, 1, K, K)
    mask[:, :, K // 2, K // 2] = True
    return mask.float()


def run_rows(rows: nn.ModuleList, x: Tensor) -> Tensor:
    """For each row the sum of its one-channel convolutions, concatenated."""
    outputs = []
    for row in rows:
        total: Tensor | None = None
        for m, conv in enumerate(row.children()):
            term: Tensor = conv(x[:, m : m + 1])
            total = term if total is None else total + term
        assert total is not None
        outputs.append(total)
    return torch.cat(outputs, dim=1)


class LoopHetConv(nn.Module):
    """One `nn.Conv2d` for each pair of channels, in ModuleLists."""

    def __init__(self, inputs: int = M, outputs: int = N, parts: int = P) -> None:
        super().__init__()
        full = full_kernels(inputs, outputs, parts)
        self.rows = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(1, 1, K if full[n, m] else 1, padding=K // 2 if full[n, m] else 0, bias=False) for m in range(inputs)
            )
            for n in range(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        return run_rows(self.rows, x)


class ListHetConv(nn.Module):
    """The same loop with plain Python lists: no parameter is registered."""

    def __init__(self, inputs: int = M, outputs: int = N, parts: int = P) -> None:
        super().__init__()
        full = full_kernels(inputs, outputs, parts)
        self.rows = [
            [nn.Conv2d(1, 1, K if full[n, m] else 1, padding=K // 2 if full[n, m] else 0) for m in range(inputs)]
            for n in range(outputs)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        outputs = []
        for row in self.rows:
            total = row[0](x[:, :1])
            for m in range(1, len(row)):
                total = total + row[m](x[:, m : m + 1])
            outputs.append(total)
        return torch.cat(outputs, dim=1)


class GatherHetConv(nn.Module):
    """For each residue the K x K convolution of the gathered channels and a 1x1 of the others; a permutation at the end."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.near = [torch.arange(r, M, P) for r in range(P)]
        self.far = [torch.tensor([m for m in range(M) if m % P != r]) for r in range(P)]
        self.wide = nn.ModuleList(nn.Conv2d(len(index), N // P, K, padding=K // 2) for index in self.near)
        self.point = nn.ModuleList(nn.Conv2d(len(index), N // P, 1, bias=False) for index in self.far)
        written = torch.cat([torch.arange(r, N, P) for r in range(P)])
        self.register_buffer("order", torch.argsort(written))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        parts = [self.wide[r](x[:, self.near[r]]) + self.point[r](x[:, self.far[r]]) for r in range(P)]
        return torch.cat(parts, dim=1)[:, self.order]


class StridedHetConv(nn.Module):
    """Strided slices x[:, r::P], written into the strided slices of a view of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Conv2d(M // P, N // P, K, padding=K // 2, bias=False) for _ in range(P))
        self.point = nn.ModuleList(nn.Conv2d(M - M // P, N // P, 1, bias=False) for _ in range(P))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        slices = [x[:, r::P] for r in range(P)]
        parts = []
        for r in range(P):
            others = torch.cat([slices[s] for s in range(P) if s != r], dim=1)
            parts.append(self.wide[r](slices[r]) + self.point[r](others))
        stacked = torch.cat(parts, dim=1)
        batch, _, height, width = stacked.shape
        return stacked.view(batch, P, N // P, height, width).permute(0, 2, 1, 3, 4).reshape(batch, N, height, width)


class MaskedHetConv(nn.Module):
    """A dense weight times a mask."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, M, K, K) / 12)
        self.bias = nn.Parameter(torch.randn(N))
        self.register_buffer("mask", hetconv_mask(M, N, P))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H/2, W/2)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, stride=2, padding=K // 2)


class GroupAndPoint(nn.Module):
    """A group convolution and a 1x1 convolution; ``masked`` removes from the 1x1 what the groups hold already."""

    mask: Tensor

    def __init__(self, *, masked: bool, point_groups: int = 1) -> None:
        super().__init__()
        self.wide = nn.Conv2d(M, N, K, padding=K // 2, groups=P, bias=False)
        self.point = nn.Conv2d(M, N, 1, groups=point_groups)
        blocks = torch.kron(torch.eye(P), torch.ones(N // P, M // P))[:, :: point_groups or 1]
        self.register_buffer("mask", (1 - blocks[:, :, None, None]) if masked else torch.ones_like(self.point.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        point = F.conv2d(x, self.point.weight * self.mask, self.point.bias, groups=self.point.groups)
        y: Tensor = self.wide(x) + point
        return y


class GroupPlusMinus(nn.Module):
    """A group convolution, plus a full 1x1, minus the 1x1 of the groups with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(M, N, K, padding=K // 2, groups=P, bias=False)
        self.point = nn.Conv2d(M, N, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        rows = torch.chunk(self.point.weight, P)
        inner = torch.cat([row[:, g * (M // P) : (g + 1) * (M // P)] for g, row in enumerate(rows)])
        y: Tensor = self.wide(x) + self.point(x) - F.conv2d(x, inner, groups=P)
        return y


class DualConv(nn.Module):
    """A group convolution and a 1x1 over all channels, side by side, with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.group = nn.Conv2d(M, N, K, stride=2, padding=1, groups=P, bias=False)
        self.point = nn.Conv2d(M, N, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H/2, W/2)."""
        y: Tensor = self.group(x) + self.point(x)
        return y


class ChannelLocal(nn.Module):
    """Output n reads the ``WINDOW`` inputs from n on: wrapping around, with a roll for each."""

    WINDOW = 4

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Conv2d(M, M, K, padding=1, groups=M, bias=False) for _ in range(self.WINDOW))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W)."""
        total: Tensor = self.taps[0](x)
        for shift in range(1, self.WINDOW):
            total = total + self.taps[shift](torch.roll(x, -shift, dims=1))
        return total


class ChannelSlide(nn.Module):
    """One kernel that slides over the channels as over a third dimension: a 3-D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, (8, K, K), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M - 7, H, W)."""
        y: Tensor = self.conv(x.unsqueeze(1)).squeeze(1)
        return y


class UnfoldMatmul(nn.Module):
    """im2col and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(M * K * K, N)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        batch, _, height, width = x.shape
        columns = F.unfold(x, K, padding=K // 2)  # (B, M * K * K, H * W)
        y: Tensor = self.linear(columns.transpose(1, 2)).transpose(1, 2).reshape(batch, N, height, width)
        return y


class ShiftedSum(nn.Module):
    """A sum of shifted slices of the padded image, one 1x1 product for each tap."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, K, N, M) / 12)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        taps = [
            torch.einsum("nm,bmhw->bnhw", self.weight[i, j], padded[:, :, i : i + height, j : j + width])
            for i in range(K)
            for j in range(K)
        ]
        return torch.stack(taps).sum(dim=0)


class LoopHetConv1d(nn.Module):
    """HetConv on sequences, as a loop."""

    def __init__(self) -> None:
        super().__init__()
        full = full_kernels(M, N, P)
        self.rows = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(1, 1, K if full[n, m] else 1, padding=K // 2 if full[n, m] else 0) for m in range(M))
            for n in range(N)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, L) -> (B, N, L)."""
        return run_rows(self.rows, x)


class Masking(nn.Module):
    """A parametrization that multiplies with HetConv's mask."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", hetconv_mask(M, N, P))

    def forward(self, weight: Tensor) -> Tensor:
        """(N, M, K, K) -> (N, M, K, K)."""
        return weight * self.mask


def _parametrized() -> nn.Module:
    conv = nn.Conv2d(M, N, K, padding=K // 2)
    parametrize.register_parametrization(conv, "weight", Masking())
    return conv


IMAGE = (2, M, SIZE, SIZE)
FORMS: Final[dict[str, Callable[[], Form]]] = {
    "HetConv, N x M loop in ModuleLists": lambda: (LoopHetConv(), IMAGE),
    "HetConv, N x M loop in Python lists": lambda: (ListHetConv(), IMAGE),
    "HetConv, P does not divide M": lambda: (LoopHetConv(10, 7, 4), (2, 10, SIZE, SIZE)),
    "HetConv, gathers": lambda: (GatherHetConv(), IMAGE),
    "HetConv, strided slices, cat and permute": lambda: (StridedHetConv(), IMAGE),
    "HetConv, masked weight, stride 2": lambda: (MaskedHetConv(), IMAGE),
    "HetConv, group conv + masked 1x1": lambda: (GroupAndPoint(masked=True), IMAGE),
    "HetConv, group conv + 1x1 - grouped 1x1": lambda: (GroupPlusMinus(), IMAGE),
    "HetConv, 1-D loop": lambda: (LoopHetConv1d(), (2, M, 40)),
    "DualConv, stride 2": lambda: (DualConv(), IMAGE),
    "DualConv, both branches grouped": lambda: (GroupAndPoint(masked=False, point_groups=2), IMAGE),
    "Channel-local, wrapping": lambda: (ChannelLocal(), IMAGE),
    "Channel-local, sliding (Conv3d)": lambda: (ChannelSlide(), IMAGE),
    "Weight normalisation": lambda: (parametrizations.weight_norm(nn.Conv2d(M, N, K, padding=1)), IMAGE),
    "Parametrized mask": lambda: (_parametrized(), IMAGE),
    "im2col and matmul": lambda: (UnfoldMatmul(), IMAGE),
    "Sum of shifted slices": lambda: (ShiftedSum(), IMAGE),
    "Conv + BatchNorm": lambda: (nn.Sequential(nn.Conv2d(M, N, K, padding=1, bias=False), norm(N)), IMAGE),
    "Depthwise conv + BatchNorm": lambda: (nn.Sequential(nn.Conv2d(M, M, 5, 2, 2, groups=M, bias=False), norm(M)), IMAGE),
    "RepVGG": lambda: (RepVGG(), IMAGE),
    "MobileOne": lambda: (MobileOne(), IMAGE),
    "DBB": lambda: (DBB(), IMAGE),
    "ACNet": lambda: (ACNet(), IMAGE),
    "Reflection padding, dilated": lambda: (
        nn.Sequential(nn.Conv2d(M, N, K, padding=2, dilation=2, padding_mode="reflect", bias=False), norm(N)),
        IMAGE,
    ),
}
