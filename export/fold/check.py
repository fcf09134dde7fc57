"""Whether a recovered kernel is the function: at the size that the network uses, on a batch, to a stated tolerance.

The function f is proven affine before, so the difference of f and the kernel is affine too. An affine map that is not zero is
zero only on a set of measure zero, so one dense random input decides, up to the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgefold.export.fold.kernel import Kernel

Function = Callable[[Tensor], Tensor]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
_SMALL = 1e-2  # channels fainter than this share of the strongest are measured against that share of it


def relative_error(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """The largest error of the kernel on x against y = f(x), relative to the channel's strongest response (without its bias)."""
    expected = kernel(x)
    if expected.shape != y.shape:
        return float("inf")
    channels = (0, *range(2, y.ndim))
    bias = kernel.bias.view(-1, *(1,) * (y.ndim - 2))
    scale = (y - bias).abs().amax(dim=channels)
    scale = scale.clamp(min=float(scale.max()) * _SMALL)
    # A large bias leaves its own rounding in every output.
    rounding = 4 * torch.finfo(y.dtype).eps * kernel.bias.abs()
    error = (y - expected).abs().amax(dim=channels) - rounding
    ratio = torch.where(error > 0, error / scale, 0.0)
    return float(ratio.max()) if bool(torch.isfinite(y).all()) else float("inf")


def diagnose(f: Function, x: Tensor, kernel: Kernel, error: float) -> str:
    """Why an affine function is not this convolution, for the plan."""
    blank = f(torch.zeros_like(x))
    middle = blank[(slice(None), slice(None), *(slice(size // 2, size // 2 + 1) for size in blank.shape[2:]))]
    if float((blank - middle).abs().max()) > TOLERANCE.get(x.dtype, 1e-5) * float(blank.abs().max()):
        return "its bias varies over space (a bias or a BatchNorm before a padded convolution)"
    changed = x.clone()
    changed[1:] = 0
    if len(x) > 1 and not torch.equal(f(changed)[:1], f(x)[:1]):
        return "it mixes the samples of a batch"
    return f"its weights depend on the position: one convolution is off by {error:.1g} of its output (relative)"


def random_like(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Dense normal values, the same in every run."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
