"""Published blocks of parallel branches in their training form, each one convolution in inference; see `forms`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

M, N, K = 16, 24, 3


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm with statistics as after training."""
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias, std=0.5)
    layer.running_mean = torch.randn(channels)
    layer.running_var = torch.rand(channels) + 0.5
    return layer


class RepVGG(nn.Module):
    """3x3, 1x1 and identity, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(M, M, K, padding=1, bias=False), norm(M))
        self.point = nn.Sequential(nn.Conv2d(M, M, 1, bias=False), norm(M))
        self.identity = norm(M)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W)."""
        y: Tensor = self.wide(x) + self.point(x) + self.identity(x)
        return y


class MobileOne(nn.Module):
    """Several depthwise branches, a 1x1 depthwise branch and an identity branch, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(M, M, K, padding=1, groups=M, bias=False), norm(M)) for _ in range(4)
        )
        self.scale = nn.Sequential(nn.Conv2d(M, M, 1, groups=M, bias=False), norm(M))
        self.skip = norm(M)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W)."""
        total: Tensor = self.skip(x) + self.scale(x)
        for branch in self.branches:
            total = total + branch(x)
        return total


class NormAndPad(nn.Module):
    """BatchNorm, then a border of the value that it gives to zero: so the convolution after it folds."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d = norm(channels)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2 pad, W + 2 pad)."""
        y = self.norm(x)
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        edge = self.norm.bias - mean * self.norm.weight / torch.sqrt(variance + self.norm.eps)
        out = edge.view(1, -1, 1, 1).repeat(len(x), 1, y.shape[2] + 2 * self.pad, y.shape[3] + 2 * self.pad)
        out[:, :, self.pad : -self.pad, self.pad : -self.pad] = y
        return out


class DBB(nn.Module):
    """Diverse branches: KxK, 1x1, 1x1 then KxK, 1x1 then average pooling; each with BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(M, N, K, padding=1, bias=False), norm(N))
        self.point = nn.Sequential(nn.Conv2d(M, N, 1, bias=False), norm(N))
        self.chain = nn.Sequential(nn.Conv2d(M, M, 1, bias=False), NormAndPad(M, 1), nn.Conv2d(M, N, K, bias=False), norm(N))
        self.average = nn.Sequential(nn.Conv2d(M, N, 1, bias=False), NormAndPad(N, 1), nn.AvgPool2d(K, 1), norm(N))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        y: Tensor = self.wide(x) + self.point(x) + self.chain(x) + self.average(x)
        return y


class ACNet(nn.Module):
    """Square, horizontal and vertical kernels, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(M, N, (3, 3), padding=(1, 1), bias=False)
        self.row = nn.Conv2d(M, N, (1, 3), padding=(0, 1), bias=False)
        self.column = nn.Conv2d(M, N, (3, 1), padding=(1, 0), bias=False)
        self.norms = nn.ModuleList(norm(N) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H, W)."""
        first, second, third = self.norms
        y: Tensor = first(self.square(x)) + second(self.row(x)) + third(self.column(x))
        return y
