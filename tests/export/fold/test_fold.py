"""The whole fold: inputs that are refused, the module that is left alone, shared and hidden modules, the plan."""

from __future__ import annotations

import cProfile
import pstats

import pytest
import torch
import torch.nn.functional as F
from branch_forms import norm
from forms import LoopHetConv, MaskedHetConv
from torch import Tensor, nn

from edgefold.errors import ModelError
from edgefold.export.fold import fold_module
from edgefold.export.fold.check import relative_error
from edgefold.export.fold.kernel import Kernel
from edgefold.export.fold.progress import Told


def convolutions(module: torch.fx.GraphModule) -> int:
    return sum("conv" in str(node.target) for node in module.graph.nodes if node.op == "call_function")


def test_train_mode_is_refused_with_the_fix() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    module[1].train()
    with pytest.raises(ModelError, match=r"'1'.*call .eval\(\) first"):
        fold_module(module, torch.randn(1, 3, 8, 8))


def test_a_wrong_input_is_refused_with_its_shape() -> None:
    with pytest.raises(ModelError, match=r"\(1, 5, 8, 8\)"):
        fold_module(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 5, 8, 8))


def test_weights_that_are_not_finite_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
    next(module.parameters()).data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'0.weight'"):
        fold_module(module, torch.randn(1, 3, 8, 8))


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(LoopHetConv(4, 6, 2), norm(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in module.named_modules()}
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = module(x)

    fold_module(module, x)

    assert {name: set(vars(part)) for name, part in module.named_modules()} == attributes
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(module(x), expected)


def test_a_module_that_is_used_twice_folds_once_for_both_sizes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = LoopHetConv(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.shared(x.relu()).relu()
            return self.shared(F.max_pool2d(y, 2)).relu()

    result = fold_module(Twice().eval(), torch.randn(1, 4, 12, 12))
    assert convolutions(result.module) == 2
    assert [layer.name for layer in result.plan.layers] == ["shared", "shared"]


def test_a_module_that_is_one_convolution_at_one_size_only_stays() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * 2.0
            return y if x.shape[-1] > 8 else y.clamp(-1e6, 1e6)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = Sized()

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(F.max_pool2d(self.shared(x.relu()).relu(), 2)).relu()

    result = fold_module(Twice().eval(), torch.randn(1, 4, 12, 12))
    assert any("clamp" in str(node.target) for node in result.module.graph.nodes)


def test_blocks_in_plain_lists_are_found() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [LoopHetConv(4, 4, 2), LoopHetConv(4, 4, 4)]

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x).relu()
            return x

    module = Hidden().eval()
    for block in module.blocks:
        block.eval()
    result = fold_module(module, torch.randn(1, 4, 8, 8))
    assert convolutions(result.module) == 2
    assert all(layer.folded for layer in result.plan.layers)


def test_code_that_asks_for_the_type_of_a_layer_keeps_its_outputs() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MaskedHetConv()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.relu())
            return y.relu() if isinstance(self.layer, MaskedHetConv) else y

    module = Picky().eval()
    x = torch.randn(1, 16, 8, 8)
    result = fold_module(module, x)
    with torch.no_grad():
        torch.testing.assert_close(result.module(x)[0], module(x), rtol=0, atol=1e-4)


def test_hooks_count_as_part_of_their_layer() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval()
    module[0].register_forward_hook(lambda layer, args, out: out * 2)
    x = torch.randn(1, 4, 8, 8)
    result = fold_module(module, x)
    assert convolutions(result.module) == 1
    with torch.no_grad():
        torch.testing.assert_close(result.module(x)[0], module(x), rtol=0, atol=1e-5)


def test_several_inputs_and_outputs_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = LoopHetConv(4, 4, 2), MaskedHetConv()

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"a": self.left(a).relu(), "b": self.right(b).relu()}

    inputs = {"a": torch.randn(1, 4, 8, 8), "b": torch.randn(1, 16, 8, 8)}
    result = fold_module(Two().eval(), inputs)
    assert convolutions(result.module) == 2
    assert result.program.output_names == ("a", "b")


def test_the_plan_counts_before_and_after() -> None:
    result = fold_module(nn.Sequential(LoopHetConv(8, 8, 4), norm(8), nn.ReLU()).eval(), torch.randn(2, 8, 10, 10))
    (layer,) = result.plan.layers
    weights = 8 * (2 * 9 + 6)
    assert (layer.name, layer.folded, layer.reason) == ("0", True, "")
    assert layer.geometry == "8->8 k3x3 s1x1 p1,1,1,1 d1x1 g1"
    assert (layer.parameters_before, layer.parameters) == (weights + 4 * 8, weights + 8)
    assert (layer.macs_before, layer.macs) == ((weights + 8) * 100, weights * 100)
    assert layer.kernel_map is not None
    assert (layer.kernel_map.full, layer.kernel_map.centre, layer.kernel_map.zero) == (16, 48, 0)
    assert 0 < layer.max_relative_error <= 1e-5


def test_a_plain_convolution_says_so() -> None:
    result = fold_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    (layer,) = result.plan.layers
    assert (layer.folded, layer.reason) == (False, "is one convolution already")


def test_what_stays_gives_its_reason_once() -> None:
    class Clamped(LoopHetConv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-100, 100)

    result = fold_module(nn.Sequential(Clamped(8, 8, 4), nn.ReLU()).eval(), torch.randn(1, 8, 6, 6))
    kept = [layer for layer in result.plan.layers if not layer.folded]
    assert [layer.reason for layer in kept if layer.name == "0"] == [] or "aten.clamp" in kept[0].reason


class Heard:
    """What a `Stages` was told: the steps announced and the steps done of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int | None, int]] = {}

    def stage(self, name: str, steps: int | None = None) -> None:
        assert name not in self.stages
        self.stages[name] = (steps, 0)

    def step(self) -> None:
        name = list(self.stages)[-1]
        steps, done = self.stages[name]
        assert steps is not None
        assert done < steps
        self.stages[name] = (steps, done + 1)


def test_progress_is_told() -> None:
    told = Heard()
    blocks = [layer for _ in range(4) for layer in (LoopHetConv(4, 4, 2), nn.ReLU())]
    fold_module(nn.Sequential(*blocks).eval(), torch.randn(1, 4, 6, 6), progress=told)
    assert list(told.stages) == ["fold: record", "fold: modules", "fold: capture", "fold: graph"]
    steps, done = told.stages["fold: modules"]
    assert steps is not None
    assert steps // 2 < done <= steps


def test_progress_of_very_many_parts_is_told_in_hundredths() -> None:
    told = Heard()
    report = Told(told).counted("many")
    for done in range(0, 262_144, 7):
        report(done, 262_144)
    assert told.stages == {"many": (100, 99)}


def test_a_small_known_field_is_probed_without_asking_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def moves(*args: object) -> bool:
        raise AssertionError("more work than the probe that it may spare")

    monkeypatch.setattr("edgefold.export.fold.attempt.moves", moves)
    block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8))
    result = fold_module(nn.Sequential(block, nn.ReLU()).eval(), torch.randn(1, 4, 32, 32))
    assert result.plan.layers[0].folded


def test_a_profiler_at_work_goes_on_after_the_fold() -> None:
    profile = cProfile.Profile()
    profile.enable()
    try:
        fold_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(1, 3, 8, 8))
        after()
    finally:
        profile.disable()
    assert any(function == "after" for _, _, function in pstats.Stats(profile).stats)  # type: ignore[attr-defined]  # not in typeshed


def after() -> None:
    """A call that a profiler sees."""


def test_one_pixel_with_a_weak_response_is_judged_by_the_size_of_the_weights() -> None:
    """The error of float32 is that of the terms, however well they cancel."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 960, 1, 1), torch.randn(1, 960, 1, 1)
    along = (weight * x).sum((1, 2, 3)) / x.square().sum()
    weight[0] -= along[0] * x[0]  # across the image: answers with rounding alone
    kernel = Kernel(weight, torch.zeros(4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    y = F.conv2d(x, weight)
    y[0, 0] += 4e-7 * y.abs().max()
    assert relative_error(kernel, x, y) < 1e-6
    y[0, 0] += 1e-3 * y.abs().max()
    assert relative_error(kernel, x, y) > 1e-4
