"""Random modules: what is one convolution folds, what is none never does, and no fold changes an output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefold.errors import EdgefoldError
from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.kernel import FoldedConv
from tests.export.fold.generator import Case, generate

SEEDS = 2_500


def check(case: Case) -> bool:
    """Whether the module folded; asserts what must hold in any case."""
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(7))
    tree = fold_tree(case.module, (x,), {})
    folded = isinstance(tree.module, FoldedConv)
    assert case.foldable or not folded, case.name
    if folded:
        with torch.no_grad():
            # Far outside of what a check on samples would see.
            for scale in (1.0, 1e4):
                expected, found = case.module(scale * x), tree.module(scale * x)
                assert (expected - found).abs().max() <= 1e-5 * expected.abs().max(), case.name
    return folded


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 1 << 32))
def test_only_convolutions_fold(seed: int) -> None:
    check(generate(seed))


def test_the_generator_makes_both_kinds() -> None:
    cases = [generate(seed) for seed in range(100)]
    assert 60 <= sum(case.foldable for case in cases) <= 70


@pytest.mark.slow
def test_nearly_all_convolutions_fold_and_no_trap() -> None:
    cases = folded = 0
    for seed in range(SEEDS):
        case = generate(seed)
        found = check(case)
        cases += case.foldable
        folded += found
    assert cases >= 0.6 * SEEDS
    assert SEEDS - cases >= 0.3 * SEEDS
    assert folded >= 0.95 * cases


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 300, 50))
def test_whole_networks_keep_their_outputs(start: int) -> None:
    """Through capture and the folding of graph regions; a module that cannot be captured is refused with a clear error."""
    for seed in range(start, start + 50):
        case = generate(seed)
        x = torch.randn(case.shape, generator=torch.Generator().manual_seed(7))
        try:
            result = fold_module(case.module, x)
        except EdgefoldError:
            assert not case.foldable, case.name
            continue
        ops = [node for node in result.module.graph.nodes if node.op == "call_function"]
        assert case.foldable or len(ops) > 1, case.name
        if case.foldable:
            with torch.no_grad():
                expected, found = case.module(x), result.module(x)[0]
            assert (expected - found).abs().max() <= 1e-5 * expected.abs().max(), case.name
