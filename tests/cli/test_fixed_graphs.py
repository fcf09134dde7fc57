"""Pruning and training of models that come as graphs: exported programs and ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from edgefold.errors import UnsupportedError
from edgefold.models.count import count_cost
from edgefold.models.data import load_npz, load_training_data
from edgefold.models.prune import macs_target, prune_channels
from edgefold.models.sources import load_source
from edgefold.models.train import train
from tests.models.onnx_files import model_of, saved

Cli = Callable[..., Any]
EXAMPLE = torch.randn(1, 1, 8, 8)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8), dtype=np.uint8)
    labels = np.arange(32) % 3
    path = tmp_path / "data.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


def program(path: Path, *, dynamic: bool) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},) if dynamic else None
    module = small().eval()
    torch.export.save(torch.export.export(module, (EXAMPLE.expand(2, -1, -1, -1),), dynamic_shapes=shapes), path)
    return path


def test_an_exported_program_is_refused_by_name(cli: Cli, data: Path, tmp_path: Path) -> None:
    path = program(tmp_path / "net.pt2", dynamic=True)
    for command in (
        ("prune", path, "--flops", "0.5", "--trust"),
        ("prune", path, "--sparsity", "0.5", "--trust", "--epochs", "0"),
        ("distill", path, "--teacher", "hetnet", "--trust"),
        ("train", path),
    ):
        refused = cli(*command, "-o", "x", "--data", data)
        words = " ".join(refused.stderr.split())
        assert refused.code == 2, words
        assert "an exported program" in words
        assert "whose graph is fixed" in words
        assert "give the Python source" in words
    with pytest.raises(UnsupportedError, match="cannot be pruned"):
        prune_channels(load_source(str(path), trust=True).module, (EXAMPLE,), lambda _: True)


def test_a_factory_that_loads_an_exported_program_is_refused(cli: Cli, data: Path, tmp_path: Path) -> None:
    path = program(tmp_path / "net.pt2", dynamic=True)
    (tmp_path / "net.py").write_text(
        "import torch\nexample_inputs = torch.zeros(1, 1, 8, 8)\n"
        f"def make():\n    return torch.export.load({str(path)!r}).module()\n"
    )
    name = f"{tmp_path / 'net.py'}:make"
    refused = cli("train", name, "-o", "x", "--data", data)
    words = " ".join(refused.stderr.split())
    assert refused.code == 2, words
    assert "net.py:make' is an exported program" in words
    assert "cannot be trained" in words
    assert "Traceback" not in refused.stderr
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        train(load_source(name).module, load_training_data(data), progress=False)


def test_an_exported_program_teaches_if_its_batch_is_open(cli: Cli, data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nexample_inputs = torch.zeros(1, 1, 8, 8)\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))\n"
    )
    student = ("distill", f"{tmp_path / 'net.py'}:make", "--data", data, "--trust", "--epochs", "1", "--teacher")
    taught = cli(*student, program(tmp_path / "open.pt2", dynamic=True), "-o", "taught")
    assert taught.code == 0, taught.stderr
    refused = cli(*student, program(tmp_path / "fixed.pt2", dynamic=False), "-o", "untaught")
    assert refused.code == 2
    assert "the teacher does not run on samples of shape" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("target", [[1, -1], [1, 32]])
def test_an_onnx_file_with_its_batch_in_a_reshape(target: list[int], tmp_path: Path) -> None:
    """It takes any batch, and its channels can be pruned: the sizes are not those of the file any more."""
    module = small().eval()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Reshape", ["d", "target"], ["e"]),
        helper.make_node("Gemm", ["e", "5.weight", "5.bias"], ["y"], transB=1),
    ]
    path = saved(model_of(nodes, {"x": (1, 1, 8, 8)}, {**weights, "target": np.array(target)}), tmp_path)
    loaded = load_source(str(path))
    batch = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(batch), module(batch))
    pruned = prune_channels(loaded.module, loaded.example_inputs, macs_target(loaded.module, loaded.example_inputs, 0.5))
    whole = count_cost(module, (EXAMPLE,)).macs
    assert count_cost(pruned.module, (EXAMPLE,)).macs <= 0.5 * whole
    assert pruned.module(batch).shape == (3, 3)


def test_no_traceback_of_a_graph_that_cannot_be_pruned(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reshape that splits channels by a number of the file."""
    assert load_npz(data, ())
    weights = {name: value.numpy() for name, value in nn.Conv2d(1, 8, 3).state_dict().items()}
    head = nn.Linear(2, 3)
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["a"]),
        helper.make_node("Reshape", ["a", "target"], ["b"]),
        helper.make_node("ReduceMean", ["b", "axes"], ["c"], keepdims=0),
        helper.make_node("Gemm", ["c", "w", "v"], ["y"], transB=1),
    ]
    values = {
        "target": np.array([1, 2, 144]),
        "axes": np.array([2]),
        "w": head.weight.detach().numpy(),
        "v": head.bias.detach().numpy(),
    }
    path = saved(model_of(nodes, {"x": (1, 1, 8, 8)}, {**weights, **values}), tmp_path)
    refused = cli("prune", path, "-o", "x", "--flops", "0.5", "--epochs", "0", "--data", data)
    assert refused.code == 2, refused.stderr
    assert "Call using an FX-traced Module" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().split("edgefold: ")) == 2
