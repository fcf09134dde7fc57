"""The solver for channel orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefold.export.lower.spaces import Layout, Solver, concatenated


def residues(channels: int, p: int) -> list[np.ndarray]:
    return [np.arange(start, channels, p) for start in range(p)]


def test_an_unconstrained_layout_keeps_its_order() -> None:
    assert Layout.free(5).order().tolist() == [0, 1, 2, 3, 4]


def test_groups_become_contiguous_in_input_and_output() -> None:
    reads, writes = Layout.free(6), Layout.free(9)
    assert Solver().arrange([reads, writes], [residues(6, 3), residues(9, 3)]) == [0, 1, 2]
    assert reads.order().tolist() == [0, 3, 1, 4, 2, 5]
    assert writes.order().tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]


def test_the_sequence_of_groups_that_is_fixed_first_holds() -> None:
    solver, first, second, third = Solver(), Layout.free(4), Layout.free(4), Layout.free(4)
    backwards = [np.array([2, 3]), np.array([0, 1])]
    assert solver.arrange([first, second], [backwards, residues(4, 2)]) == [0, 1]
    assert first.order().tolist() == [2, 3, 0, 1]
    # The groups of `first` in the other sequence: the output must follow.
    assert solver.arrange([first, third], [backwards[::-1], residues(4, 2)]) == [1, 0]
    assert third.order().tolist() == [1, 3, 0, 2]


def test_operands_of_an_add_share_an_order() -> None:
    solver, one, other = Solver(), Layout.free(8), Layout.free(8)
    assert solver.unify(one, other) is None
    assert solver.arrange([one], [residues(8, 4)]) == [0, 1, 2, 3]
    assert other.order().tolist() == one.order().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_concat_is_a_block_permutation() -> None:
    solver, one, other, free = Solver(), Layout.free(4), Layout.free(6), Layout.free(10)
    joined = concatenated([one, other])
    assert solver.unify(joined, free) is None
    assert solver.arrange([free], [[np.array([1, 3]), np.array([0, 2]), np.array([5, 7, 9]), np.array([4, 6, 8])]]) == [
        0,
        1,
        2,
        3,
    ]
    assert one.order().tolist() == [1, 3, 0, 2]
    assert other.order().tolist() == [1, 3, 5, 0, 2, 4]
    assert free.order().tolist() == joined.order().tolist()


def test_a_group_across_a_concat_must_lie_at_its_seam() -> None:
    solver, one, other = Solver(), Layout.free(4), Layout.free(4)
    reason = solver.arrange([concatenated([one, other])], [residues(8, 2)])
    assert reason == "the channels of a group cannot be stored together"
    assert one.order().tolist() == [0, 1, 2, 3]


def test_flattened_channels_move_in_blocks() -> None:
    solver, maps = Solver(), Layout.free(4)
    assert solver.arrange([maps], [residues(4, 2)]) == [0, 1]
    assert maps.repeated(3).order().tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    assert solver.arrange([maps.repeated(3)], [residues(4, 2)]) == "flattened channels cannot be grouped"


def test_a_shuffle_only_renumbers() -> None:
    solver, x = Solver(), Layout.free(6)
    permutation = np.array([0, 3, 1, 4, 2, 5])
    y = x.relabelled(permutation)
    assert permutation[y.order()].tolist() == x.order().tolist()
    assert solver.unify(x, y) == "the two operands store their channels in orders that cannot be made equal"
    assert solver.unify(Layout.natural(6), y) is None  # y in its own order, so x is stored in the shuffled one
    assert x.order().tolist() == permutation.tolist()


def test_a_fixed_order_is_not_moved() -> None:
    solver, fixed = Solver(), Layout.natural(4)
    assert isinstance(solver.arrange([fixed], [residues(4, 2)]), str)
    assert solver.arrange([fixed], [[np.array([0, 1]), np.array([2, 3])]]) == [0, 1]
    assert isinstance(solver.arrange([fixed], [[np.array([2, 3]), np.array([0, 1])]]), list)


def test_two_fixed_orders_agree_only_if_they_are_the_same() -> None:
    solver, fixed = Solver(), Layout.natural(4)
    assert solver.unify(fixed, Layout.natural(4)) is None
    assert solver.unify(fixed, Layout.natural(4).relabelled(np.array([1, 0, 2, 3]))) is not None


def test_sizes_that_do_not_fit_are_refused_with_both() -> None:
    reason = Solver().unify(Layout.free(4), Layout.free(2).repeated(2))
    assert reason == "4 channels of 1 entries cannot share the order of 2 channels of 2"


def test_a_slice_takes_its_channels_to_its_place() -> None:
    solver, x = Solver(), Layout.free(6)
    y = x.relabelled(np.array([0, 3, 1, 4, 2, 5]))  # y = [x0 x3 x1 x4 x2 x5]
    half = solver.slice(y, 0, 3)
    assert isinstance(half, Layout)
    assert sorted(x.order()[:3].tolist()) == [0, 1, 3]
    assert solver.slice(x, 0, 3) == "the channels of the slice are not stored together"


def test_failure_changes_nothing() -> None:
    solver, one, other = Solver(), Layout.free(6), Layout.free(6)
    assert solver.arrange([one], [residues(6, 3)]) == [0, 1, 2]
    assert solver.arrange([other], [residues(6, 2)]) == [0, 1]
    before = one.order().tolist(), other.order().tolist()
    assert solver.unify(one, other) is not None
    assert (one.order().tolist(), other.order().tolist()) == before


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(st.data(), sizes)
@settings(max_examples=150, deadline=None)
def test_whatever_is_granted_holds(data: st.DataObject, pieces: list[int]) -> None:
    """Random unions, slices and groups: orders stay permutations, and what succeeded stays true to the end."""
    solver, total = Solver(), sum(pieces)
    layouts = [concatenated([Layout.free(size) for size in pieces]), Layout.free(total), Layout.natural(total)]
    layouts.append(layouts[1].relabelled(np.array(data.draw(st.permutations(range(total))))))
    equal: list[tuple[Layout, Layout]] = []
    together: list[tuple[Layout, list[np.ndarray]]] = []
    for _ in range(4):
        one, other = (layouts[data.draw(st.integers(0, len(layouts) - 1))] for _ in range(2))
        kind = data.draw(st.sampled_from(["unify", "arrange", "slice"]))
        if kind == "unify" and solver.unify(one, other) is None:
            equal.append((one, other))
        elif kind == "arrange":
            labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=total, max_size=total)))
            groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
            if isinstance(solver.arrange([one], [groups]), list):
                together.append((one, groups))
        elif kind == "slice":
            start = data.draw(st.integers(0, total - 1))
            piece = solver.slice(one, start, total)
            if isinstance(piece, Layout):
                equal.append((concatenated([piece]), piece))
                assert sorted(piece.order().tolist()) == list(range(total - start))
    for layout in layouts:
        assert sorted(layout.order().tolist()) == list(range(total))
    for one, other in equal:
        assert one.order().tolist() == other.order().tolist()
    for layout, groups in together:
        position = np.argsort(layout.order())
        for group in groups:
            assert np.ptp(position[group]) == len(group) - 1


def test_a_tensor_that_holds_another_twice() -> None:
    solver, x, y = Solver(), Layout.free(4), Layout.free(8)
    twice = concatenated([x, x])
    assert solver.unify(twice, y) is None
    assert solver.arrange([x], [residues(4, 2)]) == [0, 1]
    assert y.order().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("size", [0, 1])
def test_a_slice_at_the_edge(size: int) -> None:
    piece = Solver().slice(Layout.free(4), 4 - size, 4)
    assert isinstance(piece, Layout)
    assert piece.size == size
