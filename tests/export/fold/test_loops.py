"""Loops of convolutions in functional code: scratch buffers, kernels of mixed sizes, windows of channels, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgefold.export.fold import FoldResult, fold_module, graph
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.regions import Region

C = 4
Form = Callable[[Tensor, Tensor], Tensor]


class Between(nn.Module):
    """A form in a larger forward, between two activations."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.stem, self.form, self.weight = nn.Conv2d(3, C, 3, padding=1), form, nn.Parameter(torch.randn(C, C, 5, 5) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.form(torch.relu(self.stem(x)), self.weight))


def fold(form: Form) -> tuple[FoldResult, list[str]]:
    """The result, which gives the outputs of the module, and its ops."""
    torch.manual_seed(0)
    module, x = Between(form).eval(), torch.randn(2, 3, 7, 9)
    result = fold_module(module, x)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(result.module(x)[0], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    calls = (node for node in result.module.graph.nodes if node.op == "call_function")
    return result, [str(node.target).removeprefix("aten.").split(".")[0] for node in calls]


def terms(x: Tensor, weight: Tensor, row: int, *, sizes: tuple[int, ...], image: Tensor | None = None) -> Iterator[Tensor]:
    """The convolutions of one row; the sizes of the kernels repeat along the channels, even ones read ``image``."""
    for m in range(C):
        size = sizes[(m - row) % len(sizes)]
        source = x if size % 2 or image is None else image
        middle = slice(2 - size // 2, 2 - size // 2 + size)
        yield F.conv2d(source[:, m : m + 1], weight[row : row + 1, m : m + 1, middle, middle], padding=size // 2 * (size % 2))


def rows_of(x: Tensor, weight: Tensor, *, sizes: tuple[int, ...], pads: tuple[int, ...] = ()) -> Tensor:
    image = F.pad(x, pads) if pads else None
    rows = []
    for row in range(C):
        total: Tensor | None = None
        for term in terms(x, weight, row, sizes=sizes, image=image):
            total = term if total is None else total + term
        assert total is not None
        rows.append(total)
    return torch.cat(rows, 1)


def scratch(x: Tensor, weight: Tensor, *, like: bool = False, clamp: bool = False) -> Tensor:
    """One buffer for the sums of all rows."""
    total = torch.empty_like(x[:, :1]) if like else torch.zeros(len(x), 1, *x.shape[2:])
    rows = []
    for row in range(C):
        total.zero_()
        for term in terms(x, weight, row, sizes=(3, 1)):
            total += term
            if clamp:
                total.clamp_(-0.1, 0.1)
        rows.append(total.clone())
    return torch.cat(rows, 1)


def shared_scratch(x: Tensor, weight: Tensor) -> Tensor:
    """Rows that are one buffer in the end: all hold the last sum."""
    total = torch.zeros(len(x), 1, *x.shape[2:])
    rows = []
    for row in range(C):
        total.zero_()
        for term in terms(x, weight, row, sizes=(3, 1)):
            total += term
        rows.append(total)
    return torch.cat(rows, 1)


def local(x: Tensor, weight: Tensor, *, gathered: bool = False) -> Tensor:
    """Output n reads the channels n and n + 1: windows side by side, and a group convolution."""
    if gathered:
        image = x[:, ((torch.arange(C)[:, None] + torch.arange(2)) % C).flatten()]
    else:
        image = x.unfold(1, 2, 1).permute(0, 1, 4, 2, 3).flatten(1, 2)
    groups = image.shape[1] // 2
    return F.conv2d(image, weight[:groups, :2, 1:4, 1:4], padding=1, groups=groups)


LOOPS: Final[dict[str, tuple[Form, str]]] = {
    "scratch buffer": (scratch, "4->4 k3x3 s1x1 p1,1,1,1 d1x1 g1"),
    "scratch buffer like the input": (lambda x, w: scratch(x, w, like=True), "4->4 k3x3 s1x1 p1,1,1,1 d1x1 g1"),
    "2x2, padded at the start": (
        lambda x, w: rows_of(x, w, sizes=(2, 1, 1, 1), pads=(1, 0, 1, 0)),
        "4->4 k2x2 s1x1 p1,0,1,0 d1x1 g1",
    ),
    "4x4, padded more at the start": (
        lambda x, w: rows_of(x, w, sizes=(4, 1, 1, 1), pads=(2, 1, 2, 1)),
        "4->4 k4x4 s1x1 p2,1,2,1 d1x1 g1",
    ),
    "5x5 and 3x3": (lambda x, w: rows_of(x, w, sizes=(5, 3, 3, 3)), "4->4 k5x5 s1x1 p2,2,2,2 d1x1 g1"),
    "5x5, 3x3 and 1x1": (lambda x, w: rows_of(x, w, sizes=(5, 1, 3, 1)), "4->4 k5x5 s1x1 p2,2,2,2 d1x1 g1"),
    "windows of channels": (local, "4->3 k3x3 s1x1 p1,1,1,1 d1x1 g1"),
    "windows of channels, gathered": (lambda x, w: local(x, w, gathered=True), "4->4 k3x3 s1x1 p1,1,1,1 d1x1 g1"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_in_a_larger_forward_becomes_one_convolution(name: str) -> None:
    form, geometry = LOOPS[name]
    result, ops = fold(form)
    assert [op for op in ops if op != "pad"] == ["conv2d", "relu", "conv2d", "sigmoid"]
    assert result.plan.layers[1].geometry == geometry


def test_an_even_kernel_with_points_costs_as_much_as_its_loop() -> None:
    result, _ = fold(LOOPS["2x2, padded at the start"][0])
    layer = result.plan.layers[1]
    assert layer.macs == layer.macs_before
    assert layer.kernel_map is not None
    assert (layer.kernel_map.tap, len(layer.kernel_map.groups)) == ((1, 1), 4)


@pytest.mark.parametrize(("rows", "folds"), [(1, False), (2, True)])
def test_a_loop_with_few_outputs_folds_where_its_largest_kernel_costs_no_more(rows: int, folds: bool) -> None:
    """A convolution of one output is no faster than 16 of one channel each: its multiply-accumulates count as they are."""

    inputs = 16 // rows
    sizes = (5, 5, *[3] * (inputs - 2)) * rows
    weights = [torch.randn(1, 1, size, size) for size in sizes]

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            terms = [F.conv2d(x[:, n % inputs, None], w, padding=w.shape[2] // 2) for n, w in enumerate(weights)]
            return torch.cat([torch.stack(terms[n : n + inputs]).sum(0) for n in range(0, 16, inputs)], 1)

    torch.manual_seed(0)
    (decision,) = fold_tree(Rows().eval(), (torch.randn(1, inputs, 6, 7),), {}).decisions
    assert (decision.folded is not None) == folds
    assert folds or "multiply-accumulates" in decision.reason


def test_a_clamp_in_a_scratch_buffer_keeps_the_rows_apart() -> None:
    _, ops = fold(lambda x, w: scratch(x, w, clamp=True))
    assert ops.count("clamp") == C * C
    assert ops.count("conv2d") == C * C + 1


def test_rows_in_one_buffer_are_the_last_one() -> None:
    _, ops = fold(shared_scratch)
    assert ops == ["conv2d", "relu", "conv2d", "cat", "sigmoid"]


@pytest.mark.parametrize("across", ["lines", "pixels"])
def test_windows_of_something_else_than_channels_stay(across: str) -> None:
    def form(x: Tensor, weight: Tensor) -> Tensor:
        if across == "lines":
            image = x.unfold(3, 2, 1).permute(0, 1, 4, 2, 3).flatten(1, 2)
            return F.conv2d(image, weight[:, :2, 1:4, 1:4], padding=1, groups=C)
        image = x.unfold(1, 2, 1).reshape(len(x), 6, *x.shape[2:])  # mixes pixels with channels
        return F.conv2d(image, weight[:3, :2, 1:4, 1:4], padding=1, groups=3)

    _, ops = fold(form)
    assert "unfold" in ops


def test_rows_that_fail_alike_are_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Region] = []
    attempt = graph._attempt

    def counted(module: GraphModule, region: Region, mixes: Callable[[], bool]) -> object:
        tried.append(region)
        return attempt(module, region, mixes)

    monkeypatch.setattr(graph, "_attempt", counted)
    monkeypatch.setattr(graph, "_ALIKE", 2)
    monkeypatch.setattr(graph, "_SUMS", 2)

    def form(x: Tensor, weight: Tensor) -> Tensor:
        ramp = torch.linspace(0.5, 1.5, x.shape[3])
        rows = [sum((term * ramp for term in terms(x, weight, row, sizes=(3,))), start=torch.zeros(())) for row in range(C)]
        return torch.cat(rows, 1)

    _, ops = fold(form)
    assert ops.count("mul") == C * C
    # The whole, each convolution with its slice, two of the products and two of the sums; not each of them.
    assert len(tried) <= 1 + C * C + 2 * 2 + 2
