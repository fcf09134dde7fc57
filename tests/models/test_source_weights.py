"""Weights as training code leaves them: inside other dictionaries, and under names with a prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgefold.errors import ModelError
from edgefold.models.packing import pack_state
from edgefold.models.registry import get_model
from edgefold.models.source_weights import load_state
from edgefold.models.sources import load_source


def small() -> nn.Module:
    torch.manual_seed(7)
    return get_model("hetnet", width=8, blocks=[1])


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def trained() -> nn.Module:
    torch.manual_seed(8)
    return get_model("hetnet", width=8, blocks=[1])


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (
            lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "epoch": 3},
            ["epoch, optimizer_state_dict beside"],
        ),
        (lambda s: {"state_dict": OrderedDict(s)}, ["taken from 'state_dict'."]),
        (lambda s: {"checkpoint": 1, "model": {"state_dict": s}}, ["taken from 'model'; checkpoint", "taken from 'state_dict'."]),
        (lambda s: prefixed("module.", s), ["the prefix 'module.' of all names"]),
        (
            lambda s: {"state_dict": prefixed("module._orig_mod.", s), "epoch": 1},
            ["'state_dict'", "the prefix 'module._orig_mod.'"],
        ),
        (lambda s: {"state_dict": prefixed("model.", s)}, ["'state_dict'", "the prefix 'model.'"]),
        (lambda s: s, []),
    ],
)
def test_weights_are_found_and_it_is_said(
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]], notes: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(wrap(dict(trained().state_dict())), path)
    module = small()
    found = load_state(module, path)
    assert len(found) == len(notes)
    for sentence, part in zip(found, notes, strict=True):
        assert part in sentence
        assert sentence.startswith("Weights of w.pt: ")
    for name, value in trained().state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_safetensors_lose_their_prefix_too(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(prefixed("module.", pack_state(trained())), path)
    loaded = load_source("hetnet", kwargs={"width": 8, "blocks": [1]}, weights=path)
    assert loaded.notes == ("Weights of w.safetensors: the prefix 'module.' of all names was left out.",)
    assert torch.equal(loaded.module.state_dict()["head.weight"], trained().state_dict()["head.weight"])


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path: Path) -> None:
    torch.save(AveragedModel(trained()).state_dict(), tmp_path / "w.pt")
    module = small()
    (note,) = load_state(module, tmp_path / "w.pt")
    assert "'module.'" in note
    assert torch.equal(module.state_dict()["head.weight"], trained().state_dict()["head.weight"])


def test_a_prefix_of_the_networks_own_stays(tmp_path: Path) -> None:
    own = nn.ModuleDict({"module": nn.Linear(2, 3)})
    torch.save(own.state_dict(), tmp_path / "w.pt")
    assert load_state(nn.ModuleDict({"module": nn.Linear(2, 3)}), tmp_path / "w.pt") == ()
    torch.save({**prefixed("module.", dict(small().state_dict())), "other.weight": torch.zeros(1)}, tmp_path / "mixed.pt")
    with pytest.raises(ModelError, match="does not fit Classifier"):
        load_state(small(), tmp_path / "mixed.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "none.pt")
    with pytest.raises(ModelError, match="is not a state dictionary"):
        load_state(small(), tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"hi\n", b"# weights\n", b"{}", b"\x89PNG\r\n", b""])
def test_a_file_of_something_else_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.txt' cannot be read as tensors only \(.+\); save the state dictionary"):
        load_state(small(), tmp_path / "w.txt")
