"""Random modules for the fold engine: convolutions in many ways of writing, and near misses that must never fold.

`generate(seed)` is a function of its seed only. A foldable case is one convolution by construction, and no cheaper than it; a
trap is a foldable case with one thing added that a test on samples could miss.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A module in eval mode, its input shape, whether it is one convolution, and what it is made of."""

    module: nn.Module
    shape: tuple[int, ...]
    foldable: bool
    name: str


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution M -> N; ``padding`` is symmetric, one number an axis."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The convolution with other weights."""
        function = F.conv1d if self.ndim == 1 else F.conv2d
        return function(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def point(self, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
        """The 1x1 convolution that reads the centre taps; the kernel is odd."""
        offset = [p - d * (k // 2) for p, d, k in zip(self.padding, self.dilation, self.kernel, strict=True)]
        sizes = [size for one in reversed(offset) for size in (one, one)]
        function = F.conv1d if self.ndim == 1 else F.conv2d
        return function(F.pad(x, sizes), weight, None, self.stride, groups=groups)


class Style(nn.Module):
    """A module that computes ``function``, with tensors that are registered or not."""

    def __init__(self, function: Function, tensors: list[Tensor], *, registered: bool) -> None:
        super().__init__()
        self.function = function
        if registered:
            for index, tensor in enumerate(tensors):
                self.register_buffer(f"tensor{index}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def generate(seed: int) -> Case:
    """The case of a seed; two of three are foldable."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    geometry = _geometry(rng)
    module, name = _base(rng, geometry)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        module, name = _decorated(rng, module, name, geometry)
    shape = (rng.choice((1, 1, 2, 3)), geometry.inputs, *(rng.randint(9, 14) for _ in geometry.kernel))
    foldable = rng.random() < 0.64
    if not foldable:
        with torch.no_grad():
            out = module.eval()(torch.zeros(shape))
        module, trap = _trapped(rng, module, geometry, shape, tuple(out.shape))
        name = f"{trap} ({name})"
    return Case(module.eval(), shape, foldable, name)


def _geometry(rng: random.Random) -> Geometry:
    ndim = rng.choice((1, 2, 2, 2))
    kernel = (
        tuple(rng.choice((1, 2, 3, 3, 3, 4, 5)) for _ in range(ndim))
        if rng.random() < 0.4
        else (rng.choice((1, 3, 3, 5)),) * ndim
    )
    stride = (rng.choice((1, 1, 1, 2, 3)),) * ndim
    dilation = (rng.choice((1, 1, 1, 2)),) * ndim
    same = rng.random() < 0.6
    padding = tuple(
        d * (k - 1) // 2 if same else rng.randint(0, max(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)
    )
    width = rng.choice((2, 3, 4))
    return Geometry(width * rng.randint(1, 3), width * rng.randint(1, 3), kernel, stride, padding, dilation)


def _base(rng: random.Random, g: Geometry) -> tuple[nn.Module, str]:
    """A convolution in a random way of writing."""
    weight = torch.randn(g.outputs, g.inputs, *g.kernel)
    bias = torch.randn(g.outputs) if rng.random() < 0.5 else None
    odd = all(k % 2 for k in g.kernel)
    styles: list[Callable[[], tuple[Function, list[Tensor], str]]] = [
        lambda: _masked(rng, g, weight, bias),
        lambda: _loop(rng, g, weight),
        lambda: _gathered(rng, g, weight),
        lambda: _strided(g, weight),
        lambda: _written(g, weight),
        lambda: _shifted(g, weight),
        lambda: _two_branches(g, weight, bias),
    ]
    if odd:
        styles += [lambda: _group_and_point(rng, g), lambda: _plus_minus(rng, g)]
    if g.ndim == 2:
        styles.append(lambda: _unfolded(g, weight, bias))
    function, tensors, name = rng.choice(styles)()
    return Style(function, tensors, registered=rng.random() < 0.7), name


def _masked(rng: random.Random, g: Geometry, weight: Tensor, bias: Tensor | None) -> tuple[Function, list[Tensor], str]:
    mask = (torch.rand(weight.shape) < rng.choice((0.3, 0.7, 1.0))).float()
    mask[:, 0] = 1
    return lambda x: g.conv(x, weight * mask, bias), [weight, mask], "masked"


def _loop(rng: random.Random, g: Geometry, weight: Tensor) -> tuple[Function, list[Tensor], str]:
    in_place = rng.random() < 0.5

    def run(x: Tensor) -> Tensor:
        rows = []
        for n in range(g.outputs):
            total = g.conv(x[:, :1], weight[n : n + 1, :1])
            for m in range(1, g.inputs):
                term = g.conv(x[:, m : m + 1], weight[n : n + 1, m : m + 1])
                total = total.add_(term) if in_place else total + term
            rows.append(total)
        return torch.cat(rows, dim=1)

    return run, [weight], "loop in place" if in_place else "loop"


def _gathered(rng: random.Random, g: Geometry, weight: Tensor) -> tuple[Function, list[Tensor], str]:
    read, write = torch.randperm(g.inputs), torch.randperm(g.outputs)
    half = rng.randint(1, g.inputs)

    def run(x: Tensor) -> Tensor:
        first = g.conv(x[:, read[:half]], weight[:, :half])
        rest = g.conv(x[:, read[half:]], weight[:, half:]) if half < g.inputs else 0
        return (first + rest)[:, write]

    return run, [weight], "gathered"


def _strided(g: Geometry, weight: Tensor) -> tuple[Function, list[Tensor], str]:
    parts = next(p for p in (3, 2, 1) if g.inputs % p == 0 and g.outputs % p == 0)
    size = g.inputs // parts

    def run(x: Tensor) -> Tensor:
        kernels = torch.chunk(weight[:, :size], parts)
        out = torch.cat([g.conv(x[:, r::parts], kernels[r]) for r in range(parts)], dim=1)
        moved = out.view(len(x), parts, g.outputs // parts, *out.shape[2:]).transpose(1, 2)
        return moved.reshape(out.shape)

    return run, [weight], "strided"


def _written(g: Geometry, weight: Tensor) -> tuple[Function, list[Tensor], str]:
    def run(x: Tensor) -> Tensor:
        whole = g.conv(x, weight[:1])
        out = x.new_zeros(len(x), g.outputs, *whole.shape[2:])
        for n in range(g.outputs):
            out[:, n] = g.conv(x, weight[n : n + 1])[:, 0]
        return out

    return run, [weight], "written into slices"


def _shifted(g: Geometry, weight: Tensor) -> tuple[Function, list[Tensor], str]:
    taps = list(np.ndindex(*g.kernel))

    def run(x: Tensor) -> Tensor:
        padded = F.pad(x, [size for p in reversed(g.padding) for size in (p, p)])
        spans = [size - d * (k - 1) for size, d, k in zip(padded.shape[2:], g.dilation, g.kernel, strict=True)]
        total: Tensor | None = None
        for tap in taps:
            window = padded
            for axis, (i, d, s, span) in enumerate(zip(tap, g.dilation, g.stride, spans, strict=True)):
                window = window.narrow(axis + 2, i * d, span)
                window = window[(slice(None),) * (axis + 2) + (slice(None, None, s),)]
            term = torch.einsum("nm,bm...->bn...", weight[(slice(None), slice(None), *tap)], window)
            total = term if total is None else total + term
        assert total is not None
        return total

    return run, [weight], "shifted"


def _two_branches(g: Geometry, weight: Tensor, bias: Tensor | None) -> tuple[Function, list[Tensor], str]:
    other, scale = torch.randn_like(weight), torch.randn(g.outputs, *(1,) * g.ndim)
    return lambda x: g.conv(x, weight, bias) * scale - g.conv(x, other) / 2.0, [weight, other, scale], "two branches"


def _group_and_point(rng: random.Random, g: Geometry) -> tuple[Function, list[Tensor], str]:
    groups = next(p for p in rng.sample((4, 3, 2, 1), 4) if g.inputs % p == 0 and g.outputs % p == 0)
    wide = torch.randn(g.outputs, g.inputs // groups, *g.kernel)
    point = torch.randn(g.outputs, g.inputs, *(1,) * g.ndim)
    return lambda x: g.conv(x, wide, None, groups) + g.point(x, point), [wide, point], f"{groups} groups + point"


def _plus_minus(rng: random.Random, g: Geometry) -> tuple[Function, list[Tensor], str]:
    groups = next(p for p in rng.sample((4, 3, 2, 1), 4) if g.inputs % p == 0 and g.outputs % p == 0)
    wide = torch.randn(g.outputs, g.inputs // groups, *g.kernel)
    point = torch.randn(g.outputs, g.inputs, *(1,) * g.ndim)
    rows, step = g.outputs // groups, g.inputs // groups
    inner = torch.cat([point[k * rows : (k + 1) * rows, k * step : (k + 1) * step] for k in range(groups)])

    def run(x: Tensor) -> Tensor:
        return g.conv(x, wide, None, groups) + g.point(x, point) - g.point(x, inner, groups)

    return run, [wide, point, inner], f"{groups} groups + point - point"


def _unfolded(g: Geometry, weight: Tensor, bias: Tensor | None) -> tuple[Function, list[Tensor], str]:
    def run(x: Tensor) -> Tensor:
        columns = F.unfold(x, g.kernel, g.dilation, g.padding, g.stride)
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(x.shape[2:], g.padding, g.dilation, g.kernel, g.stride, strict=True)
        ]
        out = (weight.flatten(1) @ columns).view(len(x), g.outputs, *sizes)
        return out if bias is None else out + bias.view(-1, 1, 1)

    return run, [weight], "unfold and matmul"


class _After(nn.Module):
    """A function of the module's output."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.inner = module
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


def _norm(channels: int, ndim: int) -> nn.Module:
    norm = nn.BatchNorm1d(channels) if ndim == 1 else nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    return norm


def _decorated(rng: random.Random, module: nn.Module, name: str, g: Geometry) -> tuple[nn.Module, str]:
    """The module with an affine per-channel function after it, or wrapped."""
    shape = (g.outputs, *(1,) * g.ndim)
    scale, shift, order = torch.rand(shape) + 0.5, torch.randn(shape), torch.randperm(g.outputs)
    choices: list[Callable[[], tuple[nn.Module, str]]] = [
        lambda: (nn.Sequential(module, _norm(g.outputs, g.ndim)), "norm"),
        lambda: (_After(module, lambda y: y * scale + shift), "scale"),
        lambda: (_After(module, lambda y: 0.5 * y - y / 4), "halves"),
        lambda: (_After(module, lambda y: torch.index_select(y, 1, order)), "reordered"),
        lambda: (nn.Sequential(nn.Identity(), nn.Sequential(module)), "wrapped"),
    ]
    decorated, what = rng.choice(choices)()
    return decorated, f"{name}, {what}"


class _State(nn.Module):
    """Counts its calls, in one of several places, and changes after many."""

    count: Tensor

    def __init__(self, module: nn.Module, where: str) -> None:
        super().__init__()
        self.inner = module
        self.where = where
        self.calls = 0
        self.history: list[int] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if self.where == "attribute":
            self.calls += 1
            return y if self.calls < 1000 else y.relu()
        if self.where == "list":
            self.history.append(len(x))
            return y if len(self.history) < 1000 else y.relu()
        self.count += 1
        return y * (1 + 1e-12 * self.count)


class _Branch(nn.Module):
    """Does something else when a value is far outside of what a test would give."""

    def __init__(self, module: nn.Module, how: str) -> None:
        super().__init__()
        self.inner = module
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if self.how == "max":
            return y.relu() if x.abs().max() > 1e6 else y
        if self.how == "numpy":
            return y.relu() if float(np.abs(x.detach().numpy()).max()) > 1e6 else y
        return y.relu() if max(x.flatten().tolist()) > 1e6 else y


class _Before(nn.Module):
    """A function of the module's input."""

    def __init__(self, function: Function, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.function(x))


def _trapped(
    rng: random.Random, module: nn.Module, g: Geometry, shape: tuple[int, ...], out: tuple[int, ...]
) -> tuple[nn.Module, str]:
    """The module with one thing that makes it no convolution."""
    spot = torch.ones(1, 1, *out[2:])
    spot[(0, 0, *(rng.randrange(size) for size in out[2:]))] = 1 + 1e-3
    ramp = torch.linspace(0, 1e-2, out[-1])
    after: dict[str, Function] = {
        "clamp": lambda y: y.clamp(-1e4, 1e4),
        "hardtanh": lambda y: F.hardtanh(y, -1e5, 1e5),
        "tiny abs": lambda y: y + 1e-13 * y.abs(),
        "far relu": lambda y: y - F.relu(y - 1e6),
        "where": lambda y: torch.where(y > 1e6, 0.0, y),
        "minimum": lambda y: torch.minimum(y, y + 1.0),
        "square": lambda y: y + 1e-12 * y * y,
        "rounding": lambda y: (y * 1e9).round() / 1e9,
        "one pixel": lambda y: y * spot,
        "bias ramp": lambda y: y + ramp,
        "flip": lambda y: y.flip(-1) if out[-1] > 1 else y.clamp(-1e4, 1e4),
        "spatial mean": lambda y: y - 0.1 * y.mean(dim=-1, keepdim=True) if out[-1] > 1 else y.clamp(-1e4, 1e4),
        "instance norm": lambda y: y / (1 + 1e-12 * y.abs().amax()),
        "random noise": lambda y: y + 1e-9 * torch.randn_like(y),
        "dropout": lambda y: F.dropout(y, 1e-6, training=True),
        "python random": lambda y: y if random.random() < 0.999999 else y.relu(),
        "numpy random": lambda y: y * (1 + 1e-9 * np.random.rand()),
        "batch mean": lambda y: y - 1e-3 * y.mean(dim=0, keepdim=True) if len(y) > 1 else y.clamp(-1e4, 1e4),
        "batch flip": lambda y: y + 1e-3 * y.flip(0) if len(y) > 1 else y.clamp(-1e4, 1e4),
        "batch roll": lambda y: torch.roll(y, 1, 0) if len(y) > 1 else y.clamp(-1e4, 1e4),
        "batch statistics": lambda y: F.batch_norm(y, None, None, training=True, eps=1e3),
    }
    if any(g.padding):
        shift = torch.randn(g.inputs, *(1,) * g.ndim)
        if rng.random() < 0.2 and _pads_whole(module, shape, shift):
            return _Before(lambda x: x + shift, module), "bias before padding"
    name = rng.choice([*after, "state attribute", "state list", "state buffer", "branch max", "branch numpy", "branch list"])
    if name.startswith("state"):
        return _State(module, name.split()[1]), name
    if name.startswith("branch"):
        return _Branch(module, name.split()[1]), name
    return _After(module, after[name]), name


def _pads_whole(module: nn.Module, shape: tuple[int, ...], shift: Tensor) -> bool:
    """Whether a constant input gives an output that varies over space, so that a bias before does too."""
    with torch.no_grad():
        y = module(shift.expand(shape))
    first = y[(slice(None), slice(None), *(slice(0, 1) for _ in y.shape[2:]))]
    return bool((y - first).abs().max() > 1e-3)
