"""The passes on ATen graphs: what they promise about the graph, and that it still computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import TensorSpec
from edgefold.export.capture import capture
from edgefold.export.emitters.prepare import add_values
from edgefold.export.passes.adaptive_pool import ADAPTIVE_POOL, UNEVEN_POOL
from edgefold.export.passes.global_mean import GLOBAL_MEAN
from edgefold.export.passes.half_compute import HALF_COMPUTE
from edgefold.export.passes.infra import clone, run_passes
from edgefold.export.passes.io_layout import IO_CHANNELS_LAST
from edgefold.export.passes.io_types import integer_ends
from edgefold.export.passes.module_names import STACK_AS_PATH, path_of
from edgefold.export.passes.pool_windows import POOL_WINDOWS
from edgefold.export.program import Program
from edgefold.quantize.calibrate import attach, calibrate
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import Q, QParams


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(image) + scale
        return y, self.head(y.mean((-1, -2)))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    captured = capture(Net().eval(), (torch.randn(1, 3, 6, 8), torch.randn(1, 4, 1, 1)))
    add_values(captured.graph, captured.example_inputs)
    return captured


def test_images_are_channels_last_at_the_ends_and_the_original_is_untouched(program: Program) -> None:
    image, scale = program.example_inputs
    before = program.graph.code
    graph, modified = run_passes(program.graph, (IO_CHANNELS_LAST,))
    assert modified
    expected = program.graph(image, scale)
    found = graph(image.permute(0, 2, 3, 1).contiguous(), scale.permute(0, 2, 3, 1).contiguous())
    assert found[0].shape == (1, 6, 8, 4)
    torch.testing.assert_close(found[0].permute(0, 3, 1, 2), expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert program.graph.code == before


def test_mean_over_space_keeps_its_dimensions(program: Program) -> None:
    graph, modified = run_passes(program.graph, (GLOBAL_MEAN,))
    assert modified
    (mean,) = [node for node in graph.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert mean.args[1:] == ([2, 3], True)
    for found, expected in zip(graph(*program.example_inputs), program.graph(*program.example_inputs), strict=True):
        torch.testing.assert_close(found, expected)
    assert run_passes(graph, (GLOBAL_MEAN,))[1] is False


class Pools(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(x)
        return y


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1, 1), torch.ops.aten.mean.dim),
        ((3, 2), torch.ops.aten.avg_pool2d.default),
        ((4, 2), torch.ops.aten.adaptive_avg_pool2d.default),  # 6 rows into 4 windows: they overlap
    ],
)
def test_adaptive_pooling_with_equal_windows_is_written_plainly(size: tuple[int, int], target: object) -> None:
    captured = capture(Pools(size).eval(), torch.randn(1, 2, 6, 8))
    add_values(captured.graph, captured.example_inputs)
    graph, _ = run_passes(captured.graph, (ADAPTIVE_POOL,))
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [target]
    torch.testing.assert_close(graph(*captured.example_inputs), captured.graph(*captured.example_inputs))


@pytest.mark.parametrize("size", [(4, 3), (6, 3), (7, 9), (1, 3)])
def test_adaptive_pooling_with_unequal_windows_is_means_of_slices(size: tuple[int, int]) -> None:
    captured = capture(Pools(size).eval(), torch.randn(2, 2, 6, 8))
    add_values(captured.graph, captured.example_inputs)
    graph, modified = run_passes(captured.graph, (UNEVEN_POOL,))
    assert modified
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.aten.slice.Tensor, torch.ops.aten.mean.dim, torch.ops.aten.cat.default}
    images = [tensor.double() for tensor in captured.example_inputs]
    torch.testing.assert_close(graph(*images), captured.graph(*images), rtol=1e-12, atol=1e-12)


def test_half_compute_is_float16_inside_and_float32_at_the_ends(program: Program) -> None:
    graph, _ = run_passes(program.graph, (HALF_COMPUTE,))
    kinds: list[torch.dtype] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is torch.ops.aten.conv2d.default:
                kinds.append(value.dtype)
            return value

    results = Watch(graph).run(*program.example_inputs)
    assert kinds == [torch.float16]
    for found, expected in zip(results, program.graph(*program.example_inputs), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


def test_every_call_says_where_it_comes_from(program: Program) -> None:
    graph, _ = run_passes(program.graph, (STACK_AS_PATH,))
    paths = {node.name: path_of(node) for node in graph.graph.nodes if node.op == "call_function"}
    assert paths["conv2d"] == "body.0"
    assert paths["relu"] == "body.1"
    assert paths["linear"] == "head"
    # What comes from no submodule is called by its own name.
    assert paths["add"] == "add"


@pytest.mark.parametrize(("io", "shift"), [("int8", 0), ("uint8", 128)])
def test_integer_ends_are_the_integers_of_the_graph(program: Program, io: str, shift: int) -> None:
    torch.manual_seed(1)
    batches = [tuple(torch.randn_like(tensor) for tensor in program.example_inputs) for _ in range(3)]
    attached = attach(program.graph, calibrate(program.graph, batches))
    reference = insert_qdq(attached, fold_weights=True)
    placeholders = [node for node in attached.graph.nodes if node.op == "placeholder"]
    results = list(attached.graph.output_node().args[0])  # type: ignore[arg-type]  # a tuple
    params: list[QParams] = [node.meta[Q] for node in (*placeholders, *results)]
    specs = [TensorSpec(f"t{i}", (), io, "torch", one.scale, one.zero_point + shift) for i, one in enumerate(params)]
    graph, modified = run_passes(clone(reference), (integer_ends(specs[:2], specs[2:]),))
    assert modified
    dtype = getattr(torch, io)

    def quantize(value: Tensor, one: QParams) -> Tensor:
        return (torch.clamp(torch.round(value / one.scale) + one.zero_point, -128, 127) + shift).to(dtype)

    inputs = batches[0]
    found = graph(*(quantize(value, one) for value, one in zip(inputs, params, strict=False)))
    for value, expected, one in zip(found, reference(*inputs), params[2:], strict=True):
        assert value.dtype == dtype
        assert torch.equal(value, quantize(expected, one))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "op"),
    [
        (3, 2, 1, "slice"),
        ((1, 3), (1, 2), (0, 1), "slice"),  # SAME at an odd width, but with a stride
        (5, 1, 1, "slice"),  # padding below the middle: the border of the stride-1 result is cut off
        (5, 3, 2, "slice"),
        ((3, 1), (2, 1), (1, 0), "slice"),
        (2, 2, 1, "mul"),
        ((3, 4), 2, 1, "mul"),
    ],
)
def test_means_without_padding_that_is_not_same(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int], op: str
) -> None:
    image = torch.randn(2, 3, 8, 9)
    captured = capture(nn.AvgPool2d(kernel, stride, padding, count_include_pad=False).eval(), (image,))
    add_values(captured.graph, captured.example_inputs)
    graph, modified = run_passes(captured.graph, (POOL_WINDOWS,))
    assert modified
    torch.testing.assert_close(graph(image)[0], captured.graph(image)[0], rtol=0, atol=1e-6)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets[0] == "aten.avg_pool2d.default"
    assert len(targets) > 1
    assert all(op in target for target in targets[1:])
    assert [tuple(node.meta["val"].shape[2:]) for node in graph.graph.nodes if node.op == "call_function"][-1] == tuple(
        graph(image)[0].shape[2:]
    )


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AvgPool2d(3, 2)])
def test_means_that_tflite_has_stay_as_they_are(pool: nn.AvgPool2d) -> None:
    captured = capture(pool.eval(), (torch.randn(1, 3, 8, 8),))
    add_values(captured.graph, captured.example_inputs)
    assert run_passes(captured.graph, (POOL_WINDOWS,))[1] is False


BEYOND = [
    nn.AvgPool2d(2, ceil_mode=True),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(4, 3, ceil_mode=True, count_include_pad=False),  # reaches over the end, and not by one
    nn.AvgPool2d(3, 3, ceil_mode=True),  # the middle of the last window is beyond the image
    nn.AvgPool2d((4, 3), 3, (2, 1), ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True),
]


@pytest.mark.parametrize("integers", [False, True], ids=["float", "integers"])
@pytest.mark.parametrize("pool", BEYOND, ids=str)
def test_means_of_windows_that_reach_over_the_end(pool: nn.AvgPool2d, integers: bool) -> None:
    image = torch.randn(2, 3, 10, 13)
    captured = capture(pool.eval(), (image,))
    add_values(captured.graph, captured.example_inputs)
    for node in captured.graph.graph.nodes:
        if integers and node.op != "output":
            node.meta[Q] = QParams(0.1, 0)
    graph, modified = run_passes(captured.graph, (POOL_WINDOWS,))
    assert modified
    torch.testing.assert_close(graph(image)[0], pool(image), rtol=0, atol=1e-6)
    ops = [node for node in graph.graph.nodes if node.op == "call_function"]
    pools = [node for node in ops if node.target is torch.ops.aten.avg_pool2d.default]
    # The converter knows ceil_mode where one row and column at most is beyond the end, if they are not counted.
    assert [node.args[4:6] for node in pools if node.args[4]] == ([(True, False)] if pool.kernel_size == 2 else [])
    if integers:  # all on one grid, and nothing is multiplied after it has been rounded
        assert all(node.meta.get(Q) == QParams(0.1, 0) for node in ops)
        assert torch.ops.aten.mul.Tensor not in {node.target for node in ops}
