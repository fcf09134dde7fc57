"""Recipes from end to end: pruned, distilled and shipped; each stage kept, and left out on request."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.device_bench import BenchOptions, bench
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import race
from edgefold.device_bench.runners import open_runner
from edgefold.errors import ArtifactError, UnsupportedError, UsageError
from edgefold.models.count import count_cost
from edgefold.models.sources import load_source
from edgefold.pipeline import export_model
from edgefold.recipe.run import run_recipe, run_stages
from edgefold.recipe.schema import ModelSection, PruneSection, ShipRecipe, read_recipe
from edgefold.recipe.stages import start
from edgefold.report.content import Failure, Variant
from edgefold.runtime import run
from edgefold.shipping import _refuse_empty, named_network

NET = """
import torch
from torch import nn
from edgefold.models.blocks import HetConv2d

class Net(nn.Module):
    input_size = (1, 8, 8)
    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.het = HetConv2d(width, width, 3, p=2, padding=1)
        self.head = nn.Linear(width, 2)
    def forward(self, x):
        return self.head(torch.relu(self.het(torch.relu(self.stem(x)))).mean((2, 3)))

def make(width=16):
    torch.manual_seed(0)
    return Net(width)
"""
RECIPE = """
[model]
name = "net.py:make"
[data]
source = "data.npz"
[train]
batch_size = 16
crop_padding = 0
flip = false
[prune]
flops = 0.5
rounds = 2
epochs = 1
[distill]
epochs = 1
[ship]
formats = ["onnx"]
max_secs = 0.2
max_drop = 100.0
timing = false
"""


@pytest.fixture
def recipe(tmp_path: Path) -> ShipRecipe:
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 120, (64, 8, 8), dtype=np.uint8)
    images[labels == 0, :4] += 100
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    (tmp_path / "run.toml").write_text(RECIPE)
    return read_recipe(tmp_path / "run.toml")


def test_prune_distill_fold_int8_in_one_run(recipe: ShipRecipe, tmp_path: Path) -> None:
    done = run_recipe(recipe, tmp_path / "out")
    work, shipment = done.work, done.bundle.shipment
    assert shipment.passed, [variant.failure for variant in shipment.variants]
    assert [variant.precision for variant in shipment.variants] == [Precision.FP32, Precision.INT8]
    assert [sentence.split()[0] for sentence in work.history] == ["Pruned", "Distilled"]
    assert set(work.history) <= set(shipment.notes)
    original = load_source(recipe.model.name)
    before, after = (count_cost(net, original.example_inputs) for net in (original.module, work.network.module))
    assert after.macs <= before.macs * 0.5
    # The file that ships is that of the smaller network.
    assert shipment.parameters is not None
    assert shipment.parameters <= after.parameters
    (image,) = work.inputs
    with torch.no_grad():
        expected = work.network.module(image)
    found = run(done.bundle.artifacts["onnx-fp32"], [image.numpy()])
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_stages_are_kept_and_left_out(recipe: ShipRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_stages(recipe, tmp_path / "stages")
    pruned = run_stages(recipe, tmp_path / "stages", skip=["distill"])
    assert len(first.history) == 2
    assert pruned.history == first.history[:1]
    assert pruned.removed == first.removed
    assert len(pruned.removed) == 2  # one for each round

    def never(*_: object, **__: object) -> None:
        raise AssertionError("what is there must not be trained again")

    for name in ("train", "train_with_teacher", "prune_iteratively"):
        monkeypatch.setattr(f"edgefold.recipe.stages.{name}", never)
    again = run_stages(recipe, tmp_path / "stages")
    assert (again.history, again.state, again.accuracy) == (first.history, first.state, first.accuracy)
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.network.module(image), first.network.module(image), rtol=0, atol=0)
    # The result of a stage is a source for every command.
    (folder,) = (tmp_path / "stages").glob("distill-*")
    loaded = load_source(str(folder / "network.json"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(image), first.network.module(image), rtol=0, atol=0)
    further = start(named_network(str(folder / "network.json")), str(folder / "network.json"), {})
    assert (further.source, further.removed, further.history) == (recipe.model.name, first.removed, first.history)
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="its record promises"):
        load_source(str(folder / "network.json"))
    with pytest.raises(AssertionError, match="must not be trained"):  # what is damaged is made again
        run_stages(recipe, tmp_path / "stages")
    with pytest.raises(AssertionError, match="must not be trained"):  # with other settings it is another stage
        run_stages(read_recipe(_changed(tmp_path, "flops = 0.5", "flops = 0.6")), tmp_path / "stages")
    arrays = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **arrays, mean=np.array([0.3]), std=np.array([0.2]))
    with pytest.raises(AssertionError, match="must not be trained"):  # and so it is on data normalised otherwise
        run_stages(recipe, tmp_path / "stages")


def _changed(folder: Path, old: str, new: str) -> Path:
    path = folder / "other.toml"
    path.write_text(RECIPE.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"hints": ("stem=steam",)}, {}, "unknown layer of the teacher 'steam'"),
        ({"hints": ("steam=stem",)}, {}, "unknown layer of the student 'steam'"),
        ({}, {"crop_padding": 9}, "crop padding is 9 pixels for images of 8×8"),
    ],
)
def test_what_is_found_late_is_refused_before_the_first_stage(
    recipe: ShipRecipe, tmp_path: Path, changes: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    assert recipe.distill is not None
    assert recipe.prune is not None
    wrong = replace(
        recipe,
        distill=replace(recipe.distill, **changes),
        prune=replace(recipe.prune, epochs=0),
        train={**recipe.train, **train},
    )
    with pytest.raises(UsageError, match=message):
        run_stages(wrong, tmp_path / "stages")
    assert not (tmp_path / "stages").exists()


def test_all_stages_skipped_is_the_network_itself(recipe: ShipRecipe, tmp_path: Path) -> None:
    work = run_stages(recipe, tmp_path / "stages", skip=["prune", "distill"])
    assert work.history == ()
    assert not (tmp_path / "stages").exists()
    assert work.network.calibration is not None  # the data of the recipe
    unpruned = run_stages(recipe, tmp_path / "stages", skip=["prune"])  # nothing is left to learn from the teacher
    assert unpruned.history == ()
    assert "Not distilled: the teacher would be the network before pruning, and it was not pruned." in unpruned.network.notes
    with pytest.raises(UsageError, match="distills a network that was not pruned from itself"):
        run_stages(replace(recipe, prune=None), tmp_path / "stages")
    with pytest.raises(UsageError, match="did you mean 'prune'"):
        run_stages(recipe, tmp_path / "stages", skip=["prun"])


def test_names_of_classes_are_the_datas_where_the_network_has_none(recipe: ShipRecipe, tmp_path: Path) -> None:
    skip = ["prune", "distill"]
    assert run_stages(recipe, tmp_path / "stages", skip=skip).network.labels == ()
    arrays = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **arrays, classes=np.array(["dark", "light"]))
    assert run_stages(recipe, tmp_path / "stages", skip=skip).network.labels == ("dark", "light")


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages of shipping that are really done from now on."""
    calls: list[str] = []
    for place, name in (
        ("edgefold.pipeline", "fold"),
        *(("edgefold.kept_stages", f"{stage}_all") for stage in ("quantize", "emit", "verify", "measure", "explain")),
    ):
        original = getattr(importlib.import_module(place), name)

        def counted(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            calls.append(name.removesuffix("_all"))
            return original(*args, **kwargs)

        monkeypatch.setattr(f"{place}.{name}", counted)
    return calls


def test_a_second_run_makes_only_what_changed(recipe: ShipRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(recipe, prune=None, distill=None, ship=replace(recipe.ship, max_secs=0.2, device="fake"))
    out = tmp_path / "out"
    calls = _counted(monkeypatch)
    first = run_recipe(short, out).bundle
    assert calls == ["fold", "quantize", "emit", "emit", "verify", "measure", "measure", "explain"]
    calls.clear()
    again = run_recipe(short, out, force=True).bundle
    assert calls == []
    assert replace(again.shipment, date="") == replace(first.shipment, date="")
    assert [artifact.sha256 for artifact in again.artifacts.values()] == [entry.sha256 for entry in first.artifacts.values()]
    run_recipe(replace(short, ship=replace(short.ship, max_drop=50.0)), out, force=True)
    assert calls == ["verify"]
    calls.clear()
    run_recipe(replace(short, ship=replace(short.ship, max_secs=0.3)), out, force=True)
    assert calls == ["measure", "measure", "explain"]
    calls.clear()
    (file,) = (tmp_path / "out.stages").glob("export-*/onnx-int8.onnx")
    file.write_bytes(b"damaged")
    run_recipe(short, out, remeasure=True, force=True)
    assert calls[:3] == ["emit", "measure", "measure"]
    calls.clear()
    (tmp_path / "net.py").write_text(NET.replace("torch.relu(self.stem(x))", "self.stem(x)"))  # with the same weights
    run_recipe(short, out, skip=["quantize"], force=True)
    assert calls[:2] == ["fold", "emit"]


def test_shipping_without_some_of_its_stages(recipe: ShipRecipe, tmp_path: Path) -> None:
    bundle = run_recipe(recipe, tmp_path / "plain", skip=["prune", "fold", "quantize", "measure"]).bundle
    (variant,) = bundle.shipment.variants
    assert (variant.name, variant.passed, variant.measurement) == ("onnx-fp32", True, None)
    assert bundle.shipment.fold.layers == ()
    assert [note.split(":")[0] for note in bundle.shipment.notes if note.startswith("Not ")] == [
        "Not distilled",
        "Not folded",
        "Not measured",
    ]
    original = load_source(recipe.model.name)
    with torch.no_grad():
        expected = original.module(*original.example_inputs)
    found = run(bundle.artifacts["onnx-fp32"], [original.example_inputs[0].numpy()])
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)
    only = replace(recipe, ship=replace(recipe.ship, precisions=(Precision.INT8,)))
    with pytest.raises(UsageError, match="without quantization nothing is left of the precisions int8"):
        run_recipe(only, tmp_path / "none", skip=["quantize"])


def test_a_network_that_only_folding_can_write() -> None:
    failed = Variant("onnx-fp32", Format.ONNX, Precision.FP32, failure=Failure("emit", "UnsupportedError", "no rule for an op"))
    with pytest.raises(UnsupportedError, match="no rule for an op; the network was not folded: leave out --skip fold"):
        _refuse_empty([failed], folded=False)
    with pytest.raises(UnsupportedError, match=r"no rule for an op$"):
        _refuse_empty([failed], folded=True)


@pytest.mark.slow
def test_pruning_to_a_latency(recipe: ShipRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement is replaced by one that follows the width; the network that is measured is the exported one."""
    from types import SimpleNamespace

    from edgefold.artifact import Artifact

    def fake(artifact: Artifact, device: str, **_: object) -> SimpleNamespace:
        assert (artifact.format, device) == (Format.ONNX, "host")
        return SimpleNamespace(median_ns=artifact.path.stat().st_size * 1e3)

    monkeypatch.setattr("edgefold.device_bench.bench", fake)
    text = RECIPE.replace("flops = 0.5\nrounds = 2\nepochs = 1", "latency_ms = LIMIT\nepochs = 0")
    text = text.replace("[distill]", "[distill]\nskip = true").replace('make"', 'make"\nkwargs = {width = 6}')
    whole = export_model(
        load_source(recipe.model.name, kwargs={"width": 6}).module, torch.zeros(1, 1, 8, 8), format="onnx", out=tmp_path / "whole"
    )
    text = text.replace("LIMIT", str(whole.size_bytes / 1e3 - 0.05))  # 50 bytes below the whole network
    (tmp_path / "fast.toml").write_text(text)
    work = run_stages(read_recipe(tmp_path / "fast.toml"), tmp_path / "stages")
    assert "without fine-tuning" in work.history[0]
    original = load_source(recipe.model.name, kwargs={"width": 6})
    assert count_cost(work.network.module, work.inputs).macs < count_cost(original.module, original.example_inputs).macs


@pytest.mark.parametrize(("share", "rounds"), [(2.0, 1), (0.6, 1), (0.5, 2)])
def test_pruning_to_a_latency_says_which_was_reached(
    share: float, rounds: int, recipe: ShipRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost stands for a measurement, in ms; one that the whole network meets is said, too."""

    def macs(module: nn.Module) -> int:
        return count_cost(module, (torch.zeros(1, 1, 8, 8),)).macs

    monkeypatch.setattr("edgefold.recipe.stages._latency", lambda network, settings: lambda module: macs(module) * 1e6)
    target = share * macs(load_source(recipe.model.name).module)
    section = PruneSection(latency_ms=target, rounds=rounds, epochs=0, round_to=1)
    work = run_stages(replace(recipe, prune=section, distill=None), tmp_path / "stages")
    said = (
        f"parameters; {macs(work.network.module):.3g} ms on host as onnx fp32, the target is {target:g} ms, without fine-tuning."
    )
    assert said in work.history[0]


def test_an_impossible_latency_says_which_can_be_reached(
    recipe: ShipRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def timed(module: nn.Module) -> float:
        seen.append(count_cost(module, (torch.zeros(1, 1, 8, 8),)).macs)
        return seen[-1] * 1e6

    monkeypatch.setattr("edgefold.recipe.stages._latency", lambda network, settings: timed)
    never = replace(recipe, prune=PruneSection(latency_ms=0.5, epochs=0), distill=None)
    with pytest.raises(UsageError, match=r"cannot be met: .* the target is 0\.5 ms") as refused:
        run_stages(never, tmp_path / "stages")
    assert f"that were measured takes {min(seen):.3g} ms" in str(refused.value)
    assert min(seen) < seen[0]


WIDE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)), torch.randn(1, 1, 16, 16)
"""


@pytest.mark.slow
def test_pruning_to_a_latency_that_is_measured_here(tmp_path: Path) -> None:
    """Each candidate runs in ONNX Runtime on this machine; what comes out is faster in turns with the whole network."""
    (tmp_path / "wide.py").write_text(WIDE)
    source = f"{tmp_path / 'wide.py'}:make"
    loaded = load_source(source)
    before = export_model(loaded.module, loaded.example_inputs, format="onnx", timing=False, out=tmp_path / "before")
    whole_ms = bench(before, "host", options=BenchOptions(processes=3, max_secs=10.0)).median_ns / 1e6
    settings = PruneSection(latency_ms=0.6 * whole_ms, rounds=2, epochs=0)
    work = run_stages(ShipRecipe(ModelSection(source), prune=settings), tmp_path / "stages")
    assert 1 <= len(work.removed) <= 2
    after = export_model(work.network.module, loaded.example_inputs, format="onnx", timing=False, out=tmp_path / "after")
    with open_runner("host") as host:
        turns = race([make_case(artifact, seed=0) for artifact in (after, before)], host, Launchers(host))
    assert turns.ratio(0, 1).high < 0.85
