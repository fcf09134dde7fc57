"""The structure of a weight against a direct count of its zeros."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgefold.export.fold import read_structure
from edgefold.export.fold.structure import centre_tap, point_tap


def hetconv(outputs: int, inputs: int, parts: int) -> torch.Tensor:
    """A weight (N, M, 3, 3) of ones where HetConv has weights."""
    weight = torch.zeros(outputs, inputs, 3, 3)
    weight[:, :, 1, 1] = 1
    for n, m in itertools.product(range(outputs), range(inputs)):
        if (m - n) % parts == 0:
            weight[n, m] = 1
    return weight


@pytest.mark.parametrize(("outputs", "inputs", "parts"), [(8, 8, 4), (12, 8, 2), (7, 10, 4), (6, 6, 1), (5, 3, 8)])
def test_hetconv_falls_into_its_residues(outputs: int, inputs: int, parts: int) -> None:
    found = read_structure(hetconv(outputs, inputs, parts))
    full = sum((m - n) % parts == 0 for n in range(outputs) for m in range(inputs))
    expected = {
        (tuple(range(r, inputs, parts)), tuple(range(r, outputs, parts))) for r in range(parts) if r < inputs and r < outputs
    }
    assert (found.full, found.centre, found.zero) == (full, outputs * inputs - full, 0)
    assert set(found.groups) == expected


def test_groups_of_a_group_convolution_count_in_channels_of_the_whole() -> None:
    weight = torch.ones(6, 2, 3, 3)
    weight[0, 1] = 0
    found = read_structure(weight, groups=3)
    assert (found.out_channels, found.in_channels, found.full, found.zero) == (6, 6, 11, 25)
    assert found.groups == (((0, 1), (0, 1)), ((2, 3), (2, 3)), ((4, 5), (4, 5)))


def test_channels_without_full_kernels_are_in_no_group() -> None:
    weight = torch.zeros(3, 3, 3, 3)
    weight[0, 2] = 1
    weight[1, 1, 1, 1] = 1
    found = read_structure(weight)
    assert (found.full, found.centre, found.zero) == (1, 1, 7)
    assert found.groups == (((2,), (0,)),)


def test_the_centre_of_an_even_kernel_is_the_first_middle_tap() -> None:
    assert centre_tap((4, 3)) == (1, 1)
    weight = torch.zeros(1, 2, 4, 3)
    weight[0, 0, 1, 1] = 1
    weight[0, 1, 2, 1] = 1
    found = read_structure(weight)
    assert (found.full, found.centre) == (1, 1)


def test_single_taps_may_lie_before_the_centre() -> None:
    weight = hetconv(8, 8, 4).roll((-1, -1), dims=(2, 3))  # "same" padding of TensorFlow, with a stride of 2: all at the end
    found = read_structure(weight)
    assert found.tap == (0, 0)
    assert (found.full, found.centre) == (16, 48)
    assert read_structure(hetconv(8, 8, 4)).tap == (1, 1)
    assert point_tap(torch.ones(4, 4, 5, 5)) == (2, 2)


def test_the_second_middle_tap_of_an_even_kernel_may_be_the_single_one() -> None:
    weight = torch.zeros(2, 4, 2, 2)  # padded at its start: the second tap reads the position of the output
    weight[0, ::2], weight[1, 1::2] = 1, 1
    weight[..., 1, 1] = 1
    found = read_structure(weight)
    assert (found.tap, found.full, found.centre, len(found.groups)) == ((1, 1), 4, 4, 2)
    odd = torch.zeros(1, 2, 3, 3)
    odd[0, 0], odd[0, 1, 2, 2] = 1, 1
    assert read_structure(odd).full == 2


def test_a_pointwise_weight_has_groups_of_its_own() -> None:
    weight = torch.kron(torch.eye(2), torch.ones(2, 3))[:, :, None]
    found = read_structure(weight)
    assert found.kernel_size == (1,)
    assert found.groups == (((0, 1, 2), (0, 1)), ((3, 4, 5), (2, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_components_agree_with_a_search(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    full = torch.rand(12, 9, generator=generator) < 0.12
    weight = torch.zeros(12, 9, 3, 3)
    weight[full] = 1

    def reach(start: int) -> tuple[set[int], set[int]]:
        inputs, outputs, stack = set(), {start}, [start]
        while stack:
            for m in full[stack.pop()].nonzero().flatten().tolist():
                if m not in inputs:
                    inputs.add(m)
                    for n in full[:, m].nonzero().flatten().tolist():
                        if n not in outputs:
                            outputs.add(n)
                            stack.append(n)
        return inputs, outputs

    expected = {tuple(map(tuple, map(sorted, reach(n)))) for n in range(12) if full[n].any()}
    assert set(read_structure(weight).groups) == expected
