"""A packed state holds the effective weights and nothing else, and brings the same network back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgefold.errors import ModelError
from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.packing import effective_parameters, load_weights, pack_state, save_weights, unpack_state

Make = Callable[[], nn.Module]


def test_round_trip_is_exact(tiny_network: Make) -> None:
    model = tiny_network().eval()
    packed = pack_state(model)
    assert packed["3.weight"].shape == (6 * 2 * 9 + 6 * 2,)  # 2 of 4 inputs have 3×3 kernels, 2 have 1×1
    assert not any("num_batches_tracked" in name for name in packed)
    other = tiny_network().eval()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    unpack_state(other, packed, "packed")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(other(x), model(x))


def test_a_plain_state_is_taken_too(tiny_network: Make) -> None:
    model, other = tiny_network().eval(), tiny_network().eval()
    nn.init.normal_(model.get_parameter("3.weight"))
    unpack_state(other, model.state_dict(), "plain")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(other(x), model(x))


def test_the_bare_layer_packs() -> None:
    layer = HetConv2d(4, 4, 3, p=2, bias=False)
    assert [(name, value.numel()) for name, value in pack_state(layer).items()] == [("weight", layer.effective_parameters)]


def test_effective_parameters(tiny_network: Make) -> None:
    model = tiny_network()
    assert effective_parameters(model) == sum(p.numel() for p in model.parameters()) - 6 * 2 * 8


def test_what_does_not_fit(tiny_network: Make, tmp_path: Path) -> None:
    model = tiny_network()
    packed = pack_state(model)
    with pytest.raises(ModelError, match=r"it has no '0\.bias'"):
        unpack_state(model, {k: v for k, v in packed.items() if k != "0.bias"}, "x")
    with pytest.raises(ModelError, match="it has 'more', which the network lacks"):
        unpack_state(model, {**packed, "more": torch.zeros(1)}, "x")
    with pytest.raises(ModelError, match=r"'0\.bias' has shape \(3,\), expected \(4,\)"):
        unpack_state(model, {**packed, "0.bias": torch.zeros(3)}, "x")
    with pytest.raises(ModelError, match=r"has 7 effective weights in '3\.weight', expected 120"):
        unpack_state(model, {**packed, "3.weight": torch.zeros(7)}, "x")
    path = tmp_path / "nan.safetensors"
    save_file({**packed, "0.bias": torch.tensor([0.0, float("nan"), 0.0, float("inf")])}, path)
    with pytest.raises(ModelError, match=r"NaN or infinity in '0\.bias' \(2 of 4 values\)"):
        load_weights(model, path)


def test_files(tiny_network: Make, tmp_path: Path) -> None:
    model = tiny_network()
    path = tmp_path / "w.safetensors"
    save_weights(model, path)
    assert load_file(path).keys() == pack_state(model).keys()
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(model, tmp_path / "none.safetensors")
    path.write_bytes(b"junk")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_weights(model, path)
