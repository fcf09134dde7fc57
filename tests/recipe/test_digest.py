"""A network is told from a changed one by all that its outputs depend on, and from itself by nothing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgefold.recipe.digest import module_digest
from edgefold.recipe.run import run_stages
from edgefold.recipe.schema import ModelSection, PruneSection, ShipRecipe

IMAGE = (torch.zeros(1, 2),)
NET = """
from pathlib import Path
import torch
from torch import nn

{where}K = float((Path(__file__).parent / "k.txt").read_text())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 32), nn.Linear(32, 2)
        self.input_size = (4,)
{attribute}
    def forward(self, x):
        return self.head(torch.relu(self.stem(x))) * {k}

def make():
    torch.manual_seed(0)
    return Net()
"""


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor


class Net(nn.Module):
    """Gives what it is given as long as all is 1."""

    def __init__(self, number: float = 1.0, buffer: float = 1.0, nested: float = 1.0, held: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.number, self.nested, self.scale = number, {"all": [(nested, torch.tensor(nested))]}, Scale(held)
        self.register_buffer("hidden", torch.full((2,), buffer), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        factor, other = self.nested["all"][0]
        hidden = self.get_buffer("hidden")
        return self.norm(x) * self.number * hidden * factor * other * self.scale.factor


@pytest.mark.parametrize("changed", ["number", "buffer", "nested", "held"])
def test_what_is_in_no_state_dict_counts(changed: str) -> None:
    first = module_digest(Net(), IMAGE)
    assert module_digest(Net(), IMAGE) == first
    assert module_digest(Net(**{changed: 1.00001}), IMAGE) != first  # less than the outputs tell


def test_a_layers_own_numbers_count() -> None:
    first, second = Net(), Net()
    second.norm.eps = 2e-5
    assert module_digest(first, IMAGE) != module_digest(second, IMAGE)


def test_what_a_network_keeps_of_its_runs_does_not_count() -> None:
    class Cached(Net):
        grid: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.grid is None:
                self.grid = torch.arange(x.shape[1])
            return super().forward(x) + self.grid

    fresh, used = Cached().eval(), Cached().eval()
    used(torch.zeros(3, 2))
    assert module_digest(used, IMAGE) == module_digest(fresh, IMAGE)
    assert fresh.grid is None


def test_it_is_the_same_in_every_process() -> None:
    code = "from test_digest import *; net = Net(); net.names = {'a', 'b', 'c'}; print(module_digest(net, IMAGE))"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("place", ["in the factory", "at import"])
def test_a_file_that_the_network_is_made_of_is_read_again(tmp_path: Path, place: str) -> None:
    inside = place == "in the factory"
    attribute = '        self.k = float((Path(__file__).parent / "k.txt").read_text())\n' if inside else ""
    source = NET.format(where="# " if inside else "", attribute=attribute, k="self.k" if inside else "K")
    (tmp_path / "numbered.py").write_text(source)
    recipe = ShipRecipe(ModelSection(f"{tmp_path}/numbered.py:make"), prune=PruneSection(flops=0.6, epochs=0))
    found = []
    for number in ("1.0", "1.0", "5.0"):
        (tmp_path / "k.txt").write_text(number)
        for name in [name for name in sys.modules if "numbered" in name]:
            del sys.modules[name]
        importlib.invalidate_caches()
        found.append(run_stages(recipe, tmp_path / "stages").state)
    assert found[0] == found[1] != found[2]
    assert len(list((tmp_path / "stages").glob("prune-*"))) == 2
