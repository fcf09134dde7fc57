"""Whether a recovered kernel is the function: at the size that the network uses, on a batch, to a stated tolerance.

The function f is proven affine before, so the difference of f and the kernel is affine too. An affine map that is not zero is
zero only on a set of measure zero, so one dense random input decides, up to the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgefold.export.fold.kernel import Kernel

Function = Callable[[Tensor], Tensor]

# Relative errors. The layers of ResNet-18, MobileNetV3 and ShuffleNetV2 are off by up to 2e-6 in float32, by the order of their
# sums. What rounds more (sums over a whole image that are subtracted from each other) gives other outputs than one convolution.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
_FAINT = 1e-2
_CLEARLY = 4e-5  # of the largest output: four times what a kernel may be off by in float32
BIAS_VARIES = "its bias varies over space (a bias or a BatchNorm before a padded convolution)"


def relative_error(kernel: Kernel, x: Tensor, y: Tensor, faint: float = _FAINT) -> float:
    """The largest error of the kernel on x against y = f(x), relative to the channel's strongest response (without its bias).

    A response is at least as strong as the kernel's root sum of squares says for x: an image of one pixel may show a weak one.
    Channels fainter than the share ``faint`` of the strongest are measured against that share of it.
    """
    expected = _run(kernel, x)
    if expected is None or expected.shape != y.shape or not bool(torch.isfinite(y).all()):
        return float("inf")
    channels = (0, *range(2, y.ndim))
    bias = kernel.bias.view(-1, *(1,) * (y.ndim - 2))
    usual = kernel.weight.flatten(1).norm(dim=1) * x.square().mean().sqrt()
    scale = torch.maximum((y - bias).abs().amax(dim=channels), usual)
    scale = scale.clamp(min=float(scale.max()) * faint)
    # A sum that holds a large bias is rounded at the bias's size, once a term.
    terms = kernel.weight[0].numel()
    rounding = 2 * math.sqrt(terms) * torch.finfo(kernel.bias.dtype).eps * kernel.bias.abs()
    error = (y - expected).abs().amax(dim=channels) - rounding
    return float(torch.where(error > 0, error / scale, 0.0).max())


def output_error(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """The largest error of the kernel on x against y = f(x), relative to the largest output; 0 where both are zero."""
    expected = _run(kernel, x)
    if expected is None:
        return float("inf")
    error = float((y - expected).abs().max())
    return error / float(y.abs().max()) if error else 0.0


def differs_at_border_only(kernel: Kernel, x: Tensor, y: Tensor, limit: float) -> bool:
    """Whether the kernel agrees with y = f(x) wherever it reads no padding."""
    expected = _run(kernel, x)
    if expected is None or expected.shape != y.shape:
        return False
    inner: list[slice] = []
    for axis, (before, _) in enumerate(kernel.padding):
        stride, reach = kernel.stride[axis], kernel.dilation[axis] * (kernel.weight.shape[axis + 2] - 1)
        last = (x.shape[axis + 2] - 1 - reach + before) // stride
        inner.append(slice(-(-before // stride), last + 1))
    window = (slice(None), slice(None), *inner)
    difference = (y - expected)[window]
    return difference.numel() == 0 or float(difference.abs().max()) <= limit * float(y.abs().max())


def _run(kernel: Kernel, x: Tensor) -> Tensor | None:
    """The kernel's output; None if its border is wider than the input allows."""
    try:
        return kernel(x)
    except RuntimeError:
        return None


def bias_varies(f: Function, x: Tensor, y: Tensor) -> bool:
    """Whether f(0) clearly varies over space, given y = f(x) for dense random x; a convolution's is its bias everywhere."""
    blank, middle = _blank(f, x)
    return float((blank - middle).abs().max()) > _CLEARLY * float(y.abs().max())


def _blank(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(0), and what it is in the middle of each channel."""
    blank = f(torch.zeros_like(x))
    return blank, blank[(slice(None), slice(None), *(slice(size // 2, size // 2 + 1) for size in blank.shape[2:]))]


def diagnose(f: Function, x: Tensor, kernel: Kernel, error: float) -> str:
    """Why an affine function is not this convolution, for the plan."""
    blank, middle = _blank(f, x)
    if float((blank - middle).abs().max()) > TOLERANCE.get(x.dtype, TOLERANCE[torch.float32]) * float(blank.abs().max()):
        return BIAS_VARIES
    changed = x.clone()
    changed[1:] = 0
    if len(x) > 1 and not torch.equal(f(changed)[:1], f(x)[:1]):
        return "it mixes the samples of a batch"
    return f"its weights depend on the position: one convolution is off by {error:.1g} of its output (relative)"


def random_like(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Dense normal values, the same in every run."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
