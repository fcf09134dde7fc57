"""Weights whose 16-bit pair sums cannot saturate, against the instruction as the processor's manual describes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefold.pipeline import fold
from edgefold.quantize.calibrate import annotated, calibrate, collect, make_table, output_sqnr_db
from edgefold.quantize.insert import quantize_weight
from edgefold.quantize.observers import get_observer
from edgefold.quantize.pairs import ALLOWED_LOSS_DB, is_pair_safe, largest_pair, layers_of_full_range, pair_safe_scale


def vpmaddubsw_is_exact(integers: Tensor) -> bool:
    """Whether 16-bit pair sums equal the true ones for the activations that make them largest and smallest."""
    rows = integers.permute(0, *range(2, integers.ndim), 1).reshape(len(integers), -1).numpy().astype(np.int64)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    for activations in (np.where(rows > 0, 255, 0), np.where(rows < 0, 255, 0)):
        sums = (rows * activations).reshape(len(rows), -1, 2).sum(axis=2)
        if not np.array_equal(sums, np.clip(sums, -32768, 32767)):
            return False
    return True


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (8, 3, 3, 3), (10, 64), (4, 5, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_scales_make_every_product_exact(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(shape, generator=generator) * 2 - 1  # uniform: most pairs are large
    full = weight.flatten(1).abs().amax(dim=1) / 127
    assert not vpmaddubsw_is_exact(quantize_weight(weight, full))
    safe = pair_safe_scale(weight, full)
    integers = quantize_weight(weight, safe)
    assert vpmaddubsw_is_exact(integers)
    assert is_pair_safe(integers)
    assert bool((safe >= full).all())
    assert float((safe / full).max()) <= 2 + 1e-6  # never dearer than seven bits


def test_a_lone_large_weight_costs_next_to_nothing() -> None:
    weight = torch.full((2, 6), 0.1)
    weight[:, 3] = 12.0
    full = weight.abs().amax(dim=1) / 127
    torch.testing.assert_close(pair_safe_scale(weight, full), full, rtol=0.01, atol=0)


def test_the_check_agrees_with_the_instruction() -> None:
    generator = torch.Generator().manual_seed(0)
    found = set()
    for limit in range(50, 128, 6):
        integers = torch.randint(-limit, limit + 1, (6, 4, 3, 3), generator=generator).to(torch.int8)
        safe = is_pair_safe(integers)
        assert safe == vpmaddubsw_is_exact(integers)
        found.add(safe)
    assert found == {True, False}


def test_neighbours_are_input_channels_of_one_tap() -> None:
    weight = torch.zeros(1, 2, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # channels 0 and 1 at tap 0
    weight[0, :, 0, 1] = torch.tensor([-1.0, 5.0])
    assert float(largest_pair(weight)) == 7.0


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 0.1), max_size=12), st.floats(1e-5, 0.1))
def test_the_fewest_layers_keep_their_full_range(losses: dict[str, float], noise: float) -> None:
    def sqnr_db(full: frozenset[str]) -> float:
        return -10 * math.log10(noise + sum(loss for name, loss in losses.items() if name not in full))

    kept = layers_of_full_range(losses, sqnr_db)
    best = sqnr_db(frozenset(losses))
    assert sqnr_db(kept) >= best - ALLOWED_LOSS_DB
    if kept:
        least = min(kept, key=lambda name: losses[name])
        assert losses[least] > 0
        assert sqnr_db(kept - {least}) < best - ALLOWED_LOSS_DB


def test_weights_that_need_their_range_keep_it() -> None:
    """Neighbours that are large at once lose a whole bit to pair-safe scales; the network keeps it, within what is allowed."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(8, 8, 3, 3).sign() * (1 + torch.rand(8, 8, 3, 3)) * 0.1)
    example = torch.randn(1, 8, 12, 12)
    folded = fold(nn.Sequential(*layers).eval(), example)
    batches = [(torch.randn(1, 8, 12, 12),) for _ in range(8)]
    graph = folded.program.graph
    table = calibrate(graph, batches, observer="minmax")
    full = make_table(graph, collect(graph, batches), "minmax", get_observer("minmax"))
    best, chosen = (output_sqnr_db(annotated(graph, each), batches) for each in (full, table))
    assert chosen >= best - ALLOWED_LOSS_DB
    assert any(bool((table.weights[name] == scale).all()) for name, scale in full.weights.items())
