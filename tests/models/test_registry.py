"""Built-in models: names, arguments, checkpoints that are what their recipes say, and the slice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from edgefold.artifact import sha256_of
from edgefold.errors import ArtifactError, UsageError
from edgefold.models.data import FASHION_MNIST_FOLDER, TrainingData, read_fashion_mnist
from edgefold.models.evaluate import top1
from edgefold.models.make_checkpoints import OPTIONS, SMALL
from edgefold.models.networks import NETWORKS, build_network
from edgefold.models.packing import effective_parameters
from edgefold.models.recipe import CHECKPOINTS, checkpoint_names, load_checkpoint, load_recipe, write_checkpoint
from edgefold.models.registry import SLICE, builtin_slice, get_model, list_models
from edgefold.models.train import TrainOptions, train


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_do_what_the_table_says(name: str) -> None:
    module = build_network(name, num_classes=7, in_channels=3, resolution=32)
    assert getattr(module, "input_size", None) == (3, 32, 32)
    module.eval()
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_hetnet_is_of_the_promised_size() -> None:
    assert effective_parameters(get_model("hetnet")) == 141_434
    for resolution in (28, 32):
        assert get_model("hetnet")(torch.randn(1, 1, resolution, resolution)).shape == (1, 10)
    small, dense = get_model("hetnet", width=16), get_model("hetnet", p=1)
    assert effective_parameters(small) < 141_434 < effective_parameters(dense)


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(UsageError, match="did you mean 'hetnet'"):
        get_model("hetnt")
    with pytest.raises(UsageError, match="did you mean 'width'"):
        get_model("hetnet", widht=3)
    with pytest.raises(UsageError, match="takes no arguments, but width was given; use the network 'hetnet'"):
        get_model("hetnet-fmnist", width=8)
    with pytest.raises(UsageError, match="cannot be made with width='wide'"):
        get_model("hetnet", width="wide")
    with pytest.raises(UsageError, match="width is 3, expected an even number"):
        get_model("hetnet", width=3)


def test_the_list_has_trained_models_first() -> None:
    models = list_models()
    assert [info.name for info in models] == [*checkpoint_names(), *sorted(NETWORKS)]
    assert models[0].trained
    assert models[0].accuracy is not None
    assert not models[-1].trained


@pytest.mark.parametrize("name", checkpoint_names())
def test_checkpoints_are_what_their_recipes_say(name: str) -> None:
    module, recipe = load_checkpoint(name)
    assert not module.training
    assert effective_parameters(module) == recipe.effective_parameters
    assert recipe.test_images == 10_000
    share = top1(module, builtin_slice().evaluation)
    assert share == pytest.approx(recipe.accuracy, abs=0.025)  # 1,000 of the 10,000: 3 standard errors


def test_the_small_checkpoints_share_one_recipe() -> None:
    recipes = [load_recipe(name) for name in checkpoint_names() if name != "hetnet-fmnist"]
    assert all(recipe.training == recipes[0].training == asdict(OPTIONS) for recipe in recipes)
    assert all((recipe.network, recipe.kwargs) == SMALL[recipe.name] for recipe in recipes)
    # GroupNet has two convolutions behind its stem; a quarter of MobileNetV3-Small is narrow for its strides.
    least = {"groupnet": 0.88, "mobilenet_v3": 0.89}
    assert all(recipe.accuracy >= least.get(recipe.network, 0.9) for recipe in recipes)
    # Of the HetConv paper's networks and the mobile families, not counting variants.
    families = {"hetnet", "groupnet", "vgg16", "resnet20", "resnet56", "dualnet", "shufflenet_v2"}
    families |= {"mobilenet_v1", "mobilenet_v2", "mobilenet_v3"}
    assert len(families & {recipe.network for recipe in recipes}) >= 6


def test_the_flagship_is_good_and_small() -> None:
    recipe = load_recipe("hetnet-fmnist")
    assert recipe.accuracy >= 0.925
    assert 100_000 <= recipe.effective_parameters <= 250_000
    assert (CHECKPOINTS / "hetnet-fmnist.safetensors").stat().st_size <= 1_000_000


def test_everything_built_in_is_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINTS.glob("*.safetensors")) <= 5_000_000
    assert SLICE.stat().st_size <= 800_000


def test_the_slice_is_balanced() -> None:
    data = builtin_slice()
    for part in (data.calibration, data.evaluation):
        assert part.images.shape == (1000, 1, 28, 28)
        assert part.labels.bincount().tolist() == [100] * 10
    assert not torch.equal(data.calibration.images, data.evaluation.images)


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.exists(), reason="dataset-fashion-mnist is not installed")
def test_the_slice_is_of_the_right_sets() -> None:
    data, whole = builtin_slice(), read_fashion_mnist()
    for part, source in ((data.calibration, whole.train), (data.evaluation, whole.test)):
        known = {image.tobytes(): int(label) for image, label in zip(source.images.numpy(), source.labels, strict=True)}
        assert [known[image.tobytes()] for image in part.images.numpy()] == part.labels.tolist()


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.exists(), reason="dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("name", checkpoint_names())
def test_recorded_accuracies_are_reproduced(name: str) -> None:
    module, recipe = load_checkpoint(name)
    data = read_fashion_mnist()
    assert data.sha256 == recipe.data_sha256
    assert top1(module, data.test) == pytest.approx(recipe.accuracy, abs=2e-4)  # two images: float sums differ by machine


def test_writing_and_damaging_a_checkpoint(tiny_data: TrainingData, tmp_path: Path) -> None:
    kwargs = {"num_classes": 2, "width": 4, "p": 2, "blocks": [1], "resolution": 8}
    torch.manual_seed(0)
    module = build_network("hetnet", **kwargs)
    result = train(module, tiny_data, TrainOptions(epochs=2, batch_size=16), progress=False)
    written = write_checkpoint(tmp_path, "tiny", module, "hetnet", kwargs, tiny_data, result, notes="a test")
    loaded, recipe = load_checkpoint("tiny", tmp_path)
    assert recipe == written
    assert (recipe.accuracy, recipe.training["epochs"]) == (result.accuracy, 2)
    assert recipe.weights_sha256 == sha256_of(tmp_path / "tiny.safetensors")
    x = tiny_data.test.normalised()
    assert torch.equal(loaded(x), module(x))

    record = tmp_path / "tiny.json"
    good = record.read_text()
    record.write_text(good.replace("edgefold.Recipe/1", "edgefold.Recipe/9"))
    with pytest.raises(ArtifactError, match=r"expected 'edgefold\.Recipe/1'"):
        load_checkpoint("tiny", tmp_path)
    record.write_text(good[:-20])
    with pytest.raises(ArtifactError, match="is not JSON"):
        load_checkpoint("tiny", tmp_path)
    record.write_text(good)
    weights = tmp_path / "tiny.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match="but its recipe promises"):
        load_checkpoint("tiny", tmp_path)
