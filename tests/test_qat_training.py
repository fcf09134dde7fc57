"""Training as INT8 on the shipped slice of Fashion-MNIST, and the way of its result to files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgefold.artifact import Format, Precision
from edgefold.errors import ArtifactError, DataError, UsageError
from edgefold.export.verify import output_steps, reference_outputs
from edgefold.models.data import ImageSet, TrainingData
from edgefold.models.registry import builtin_slice
from edgefold.network import Network, Quiet, ShipOptions
from edgefold.pipeline import export_model, fold
from edgefold.qat_training import QatOptions, QatResult, train_qat
from edgefold.quantize.pixels import PixelInput
from edgefold.runtime import run
from edgefold.shipping import named_network
from edgefold.trained import TrainedWeights, load_trained, quantize_network, save_trained, trained_program
from edgefold.variants import quantize_all


def _first(images: ImageSet, count: int) -> ImageSet:
    return replace(images, images=images.images[:count], labels=images.labels[:count])


@pytest.fixture(scope="module")
def done() -> tuple[Network, QatResult, TrainedWeights]:
    """The built-in network after one epoch on a hundred images."""
    network = named_network("hetnet-fmnist")
    shipped = builtin_slice()
    data = TrainingData("slice", _first(shipped.calibration, 128), _first(shipped.evaluation, 300), "0" * 64)
    return network, *train_qat(network, data, QatOptions(epochs=1, batch_size=32))


def test_it_stays_as_good_as_the_float_network(done: tuple[Network, QatResult, TrainedWeights]) -> None:
    _, result, trained = done
    assert result.test_images == 300
    assert result.float_top1 > 0.9
    assert result.qat_top1 >= result.int8_top1 - 1 / 300
    assert result.qat_top1 >= result.float_top1 - 0.01
    assert len(result.losses) == 1
    assert trained.table.biases == {}


def test_the_training_changed_the_weights_and_kept_their_zeros(done: tuple[Network, QatResult, TrainedWeights]) -> None:
    network, _, trained = done
    folded = fold(network.module, network.example_inputs)
    before = dict(folded.program.graph.named_parameters()) | dict(folded.program.graph.named_buffers())
    moved = [name for name, value in trained.weights.items() if not torch.equal(value, before[name])]
    assert len(moved) > 5
    for name, value in trained.weights.items():
        assert torch.equal(value == 0, before[name] == 0) or value.ndim < 2


def test_it_is_exported_through_the_same_path(done: tuple[Network, QatResult, TrainedWeights], tmp_path: Path) -> None:
    network, _, trained = done
    save_trained(trained, tmp_path / "net-qat.safetensors")
    again = load_trained(tmp_path / "net-qat.safetensors")
    assert again.table.activations == trained.table.activations
    assert again.table.branches == trained.table.branches
    folded = fold(network.module, network.example_inputs)
    program = trained_program(folded, again)
    images = builtin_slice().evaluation.normalised(0, 16)
    artifact = export_model(program, format="onnx", lowering="dense", out=tmp_path / "net")
    (found,) = run(artifact, images.numpy())
    (expected,) = reference_outputs(program, images)
    (step,) = output_steps(program)
    assert step is not None
    assert np.abs(found - expected).max() <= 2 * step
    with_network = quantize_network(replace(network, trained=again), folded, (), Precision.INT8)
    assert with_network.table.activations == program.table.activations
    with pytest.raises(UsageError, match="which --equalize would change"):
        quantize_network(replace(network, trained=again), folded, (), Precision.INT8, equalize=True)


def test_camera_pixels_go_into_a_trained_network(done: tuple[Network, QatResult, TrainedWeights], tmp_path: Path) -> None:
    network, _, trained = done
    folded = fold(network.module, network.example_inputs)
    options = ShipOptions(formats=(Format.ONNX,), precisions=(Precision.INT8,), io="uint8")
    program = quantize_all(replace(network, trained=trained), folded, options, Quiet())[0][Precision.INT8]
    plain = trained_program(folded, trained)
    first = next(name for name in plain.table.weights if not torch.equal(plain.table.weights[name], program.table.weights[name]))
    assert {name for name in plain.table.weights if name != first} <= set(program.table.weights)
    assert all(torch.equal(plain.table.weights[name], scale) for name, scale in program.table.weights.items() if name != first)
    images = builtin_slice().evaluation
    assert network.preprocessing is not None
    inputs = images.normalised(0, 64)
    (expected,) = reference_outputs(plain, inputs)
    pixels = PixelInput.of(network.preprocessing).pixels(inputs)
    artifact = export_model(program, format="onnx", lowering="dense", io="uint8", out=tmp_path / "net")
    assert artifact.inputs[0].dtype == "uint8"
    (found,) = run(artifact.path, pixels.numpy().astype(np.uint8))
    error = np.abs(found - expected)
    assert 10 * np.log10(np.square(expected).sum() / np.square(error).sum()) > 25
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_files_that_are_not_its_own_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(DataError, match="does not exist"):
        load_trained(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ArtifactError, match="no safetensors file"):
        load_trained(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="has schema 'None'"):
        load_trained(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("changes", "words"), [({"epochs": 0}, "epochs is 0"), ({"learning_rate": 0.0}, "learning rate is 0")])
def test_impossible_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QatOptions(**changes)
