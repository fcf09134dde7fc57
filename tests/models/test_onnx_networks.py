"""Networks written by PyTorch's two ONNX exporters and by Edgefold, read back: the same outputs, names and zeros."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.models.networks import build_network
from edgefold.models.sources import load_source
from tests.models.onnx_files import assert_agrees


def exported(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    *,
    dynamo: bool,
    open_batch: bool = False,
    outputs: tuple[str, ...] = ("y",),
) -> Path:
    axes = {f"x{place}": {0: "batch"} for place in range(len(inputs))} if open_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=dynamo,
            verbose=False,
            opset_version=18 if dynamo else 17,
            input_names=[f"x{place}" for place in range(len(inputs))],
            output_names=list(outputs),
            dynamic_axes=axes,
            external_data=False,
        )
    return path


def randomized(module: nn.Module) -> nn.Module:
    """The module with statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(generator=generator).mul_(0.1)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


@pytest.mark.parametrize("name", ["dualnet", "mobilenet_v3", "shufflenet_v2"])
def test_built_in_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = randomized(build_network(name))
    path = exported(module, (torch.randn(1, 1, 28, 28),), tmp_path / "net.onnx", dynamo=False, open_batch=True)
    assert_agrees(onnx.load(path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "lraspp_mobilenet_v3_large", "densenet121"])
def test_networks_of_torchvision(name: str, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the extra zoo is not installed")
    torch.manual_seed(0)
    loaded = load_source(f"torchvision:{name}")
    module = randomized(loaded.module)
    path = exported(module, loaded.example_inputs, tmp_path / "net.onnx", dynamo=dynamo)
    assert_agrees(onnx.load(path), tmp_path)


def test_a_file_of_our_own_and_its_zeros(tmp_path: Path) -> None:
    """Layers keep their names, and folding finds the structure in the zeros of the weights."""
    source = load_source("hetnet-fmnist")
    artifact = edgefold.export_model(
        source.module, source.example_inputs, format="onnx", lowering="dense", timing=False, out=tmp_path / "net.onnx"
    )
    loaded = load_source(str(artifact.path))
    assert loaded.name == "net"
    with torch.no_grad():
        expected, found = source.module(*source.example_inputs), loaded.module(*source.example_inputs)
    assert (expected - found).abs().max() <= 1e-5 * (expected.max() - expected.min())
    ours, theirs = (edgefold.fold(one.module, one.example_inputs).plan for one in (source, loaded))
    maps = [{layer.name.removesuffix(".Conv"): layer.kernel_map for layer in plan.layers} for plan in (ours, theirs)]
    assert len(maps[0]) == 14
    assert {name: (found.full, found.centre, found.zero) for name, found in maps[1].items() if found} == {
        name: (found.full, found.centre, found.zero) for name, found in maps[0].items() if found
    }


class TwoHeads(nn.Module):
    """Sound and a mask in, two results out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Conv1d(4, 8, 3, 2, 1), nn.Linear(8, 3), nn.Conv1d(8, 2, 1)

    def forward(self, sound: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.body(sound * mask))
        return self.first(y.mean(2)), self.second(y)


@pytest.mark.parametrize("dynamo", [False, True])
def test_several_inputs_and_outputs(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 4, 16), torch.randn(1, 1, 16))
    path = exported(TwoHeads().eval(), inputs, tmp_path / "net.onnx", dynamo=dynamo, outputs=("word", "map.1"))
    assert_agrees(onnx.load(path), tmp_path)
    loaded = load_source(str(path))
    assert [tuple(example.shape) for example in loaded.example_inputs] == [(1, 4, 16), (1, 1, 16)]
    assert {"body.weight", "body.bias"} <= set(dict(loaded.module.named_parameters()))
    artifact = edgefold.export_model(
        loaded.module, loaded.example_inputs, format="onnx", timing=False, out=tmp_path / "again.onnx"
    )
    assert [spec.name for spec in artifact.inputs] == ["x0", "x1"]
    assert [spec.name for spec in artifact.outputs] == ["word", "map_1"]


def test_weights_in_a_second_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = randomized(build_network("mobilenet_v1"))
    path = exported(module, (torch.randn(1, 1, 28, 28),), tmp_path / "net.onnx", dynamo=False)
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="weights.bin", size_threshold=0)
    whole, parted = load_source(str(path)), load_source(str(apart))
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, parted.module.state_dict()[key])
