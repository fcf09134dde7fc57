"""Recipe files: what they say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from edgefold.artifact import Format, Precision
from edgefold.errors import UsageError
from edgefold.models.prune import ROUND_TO
from edgefold.pipeline import Lowerings
from edgefold.recipe.schema import PruneSection, ShipSection, read_recipe

FULL = """
[model]
name = "net.py:make"
kwargs = {width = 8}
[data]
source = "data.npz"
[train]
learning_rate = 1
batch_size = 8
[prune]
flops = 0.5
epochs = 0
[distill]
teacher = "hetnet-fmnist"
teacher_weights = "net.py"
hints = ["stem=features.0", "a.b=c.d"]
hint_weight = 0.5
skip = true
[ship]
formats = ["onnx"]
precisions = ["fp32", "int8"]
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_full_recipe(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    (tmp_path / "data.npz").write_text("")
    recipe = read_recipe(_write(tmp_path, FULL))
    assert recipe.model.name == f"{tmp_path / 'net.py'}:make"  # relative to the recipe
    assert recipe.model.kwargs == {"width": 8}
    assert recipe.data.source == str(tmp_path / "data.npz")
    assert recipe.train == {"learning_rate": 1, "batch_size": 8}
    assert recipe.prune is not None
    assert (recipe.prune.flops, recipe.prune.epochs, recipe.prune.format) == (0.5, 0, Format.ONNX)
    assert recipe.distill is not None
    assert (recipe.distill.teacher, recipe.distill.skip) == ("hetnet-fmnist", True)
    assert recipe.distill.teacher_weights == str(tmp_path / "net.py")
    assert recipe.distill.hint_pairs() == (("stem", "features.0"), ("a.b", "c.d"))
    assert recipe.ship.precisions == (Precision.FP32, Precision.INT8)


def test_the_shortest_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(_write(tmp_path, '[model]\nname = "hetnet"\n'))
    assert (recipe.prune, recipe.distill, recipe.ship) == (None, None, ShipSection())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "is not TOML"),
        ("[prune]\nflops = 0.5\n", r"has no \[model\]"),
        ('[model]\nname = "a"\n[prun]\n', "unknown section of recipe .*did you mean 'prune'"),
        ('[model]\nname = "a"\n[prune]\nflop = 0.5\n', "did you mean 'flops'"),
        ('[model]\nname = "a"\n[prune]\nflops = "half"\n', r"wrong value at \[prune\] flops"),
        ('[model]\nname = "a"\n[prune]\nepochs = 1\n', "has nothing as target"),
        ('[model]\nname = "a"\n[prune]\nflops = 0.5\nlatency_ms = 3.0\n', "has flops and latency_ms as target"),
        ('[model]\nname = "a"\n[prune]\nblocks = 1\nrounds = 2\n', "1 blocks in 2 rounds leaves some without"),
        ('[model]\nname = "a"\n[prune]\nflops = 0.5\nrounds = 0\n', "rounds is 0, expected at least 1"),
        ('[model]\nname = "a"\n[distill]\nhints = ["x"]\n', "hint 'x' names no two layers"),
        ('[model]\nname = "a"\n[distill]\nhints = "x=y"\n', r"wrong value at \[distill\] hints"),
        ('[model]\nname = "a"\n[distill]\nteacher_weights = "w.pt"\n', "but no teacher in .distill.; name it"),
        ('[model]\nname = "a"\n[prune]\nsparsity = 0.5\n[distill]\nepochs = 1\n', "which .distill. would fill again"),
        ('[model]\nname = "a"\n[train]\nepochs = 3\n', r"unknown key of \[train\]"),
        ('[model]\nname = "a"\n[train]\nflip = 1\n', "expected a value of type bool"),
        ('[model]\nname = "a"\n[ship]\nformats = ["onx"]\n', r"wrong value at \[ship\] formats"),
        ('[model]\nname = "a"\n[ship]\nskip = ["folds"]\n', r"unknown stage in .ship. skip .*did you mean 'fold'"),
        ('[model]\nname = "a"\n[prune]\nflops = "0.5"\n', r"wrong value at \[prune\] flops"),
        ('[model]\nname = "a"\n[prune]\nflops = true\n', r"wrong value at \[prune\] flops"),
        ('[model]\nname = "a"\n[prune]\nflops = 0.5\nskip = "yes"\n', r"wrong value at \[prune\] skip"),
        ('[model]\nname = "a"\n[prune]\nflops = 0.5\nepochs = 1.5\n', r"wrong value at \[prune\] epochs"),
        ('[model]\nname = "a"\nkwargs = {day = 2020-01-01}\n', r"a date or time in \[model\]"),
        ('[model]\nname = "a"\n[prune]\nsparsity = 0.5\nround_to = 3\n', "option round_to is for removing channels"),
        ('[model]\nname = "a"\n[prune]\nflops = 0.5\nprecision = "int8"\n', "option precision is for a target of latency_ms"),
        ('[model]\nname = "a"\n[distill]\nalpha = 2\n', r"alpha is 2.0, expected a number in \[0, 1\]"),
        ('[model]\nname = "a"\n[distill]\ntemperature = 0\n', "temperature is 0.0, expected a positive number"),
        ('[model]\nname = "a"\n[distill]\nepochs = 0\n', "epochs is 0, expected at least 1"),
        ('[model]\nname = "a"\n[distill]\nhint_weight = 5\n', "hint_weight is 5, but there are no hints"),
        ('[model]\nname = "a"\n[train]\nlearning_rate = -1\n', "learning_rate is -1, expected a positive number"),
        ('[model]\nname = "a"\n[train]\nlearning_rate = true\n', "expected a value of type float"),
        ('[model]\nname = "a"\n[train]\noptimizer = "adam"\n', "unknown optimizer 'adam'; did you mean 'adamw'"),
        ('[model]\nname = "a"\n[ship]\nlowering = "x"\n', r"wrong value at \[ship\] lowering"),
        ('[model]\nname = "a"\n[ship]\nmax_batch = 1\n', "max_batch of .ship. is 1, expected at least 2"),
        ('[model]\nname = "a"\n[ship]\nmax_drop = -1\n', "max_drop of .ship. is -1.0, expected at least 0"),
        ('[model]\nname = "a"\n[ship]\nmax_size = -5\n', "max_size of .ship. is -5, expected at least 1"),
        ('[model]\nname = "a"\n[ship]\nthreads = 0\n', "threads is 0, expected at least 1"),
        ('[model]\nname = "a"\n[data]\nimage_size = 0\n', "image_size of 0 in .data., expected at least 1"),
        ('[model]\nname = "a"\n[ship]\ndevice = "shh://pi"\n', r"\[ship\]: unknown device 'shh://pi'"),
        ('[model]\nname = "a"\n[ship]\ndevice = "phone"\n', r"\[ship\]: unknown device 'phone'"),
        ('[model]\nname = "a"\n[prune]\nlatency_ms = 3.0\ndevice = "phone"\n', r"\[prune\]: unknown device 'phone'"),
        (
            '[model]\nname = "a"\n[train]\nflip = false\n[prune]\nflops = 0.5\nepochs = 0\n',
            "flip is given, and nothing is trained",
        ),
        (
            '[model]\nname = "a"\n[train]\nlearning_rate = 1.0\n',
            "learning_rate is given, and nothing is trained: there is neither",
        ),
        ('model = "a"\n', r"expected a table \[model\]"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(_write(tmp_path, text))


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    text = '[model]\nname = "a"\nkwargs = {width = 8}\n[prune]\nlatency_ms = 3\ndevice = "ssh://pi"\n'
    text += '[ship]\nmax_drop = 1\nexclude = ["a"]\n'
    recipe = read_recipe(_write(tmp_path, text))
    assert recipe.prune is not None
    assert (recipe.prune.latency_ms, recipe.prune.device, recipe.ship.max_drop) == (3.0, "ssh://pi", 1.0)
    assert (recipe.ship.exclude, recipe.model.kwargs) == (("a",), {"width": 8})


def test_lowerings_are_those_of_the_pipeline() -> None:
    assert get_args(get_type_hints(ShipSection)["lowering"]) == get_args(Lowerings)


def test_channel_counts_are_rounded_as_by_the_function() -> None:
    assert PruneSection().round_to == ROUND_TO


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
