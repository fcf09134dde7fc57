"""Recipes of networks that are no image classifiers, pruned without data and shipped with their own; teachers' preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.artifact import Precision
from edgefold.errors import UsageError
from edgefold.models.data import ImageSet, TrainingData
from edgefold.network import Network
from edgefold.preprocess import Preprocessing
from edgefold.recipe.data import as_the_teacher_takes_it
from edgefold.recipe.run import run_recipe, run_stages
from edgefold.recipe.schema import DistillSection, ModelSection, PruneSection, ShipRecipe, read_recipe
from edgefold.recipe.stages import Training, distill, start
from edgefold.runtime import run

NETS = """
import torch
from torch import nn

class Guided(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.mask = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(1, 8, 3, 2, 1)
        self.middle, self.classes = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
    def forward(self, image, mask):
        y = torch.relu(self.middle(torch.relu(self.image(image) + self.mask(mask))))
        return self.classes(nn.functional.interpolate(y, scale_factor=2.0, mode="nearest"))

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(64, 6, 1), nn.Conv2d(64, 8, 3, padding=1)
    def forward(self, image):
        y = self.body(image)
        return {"scores": self.scores(y).permute(0, 2, 3, 1).flatten(1, 2), "boxes": self.boxes(y).flatten(2)}

def guided():
    torch.manual_seed(0)
    return Guided(), (torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16))

def detector():
    torch.manual_seed(0)
    return Detector(), (torch.randn(1, 3, 16, 16),)

def samples():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(1, 3, 16, 16, generator=generator), torch.randn(1, 1, 16, 16, generator=generator)) for _ in range(8)]
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def _no_data(*_: object, **__: object) -> TrainingData:
    raise AssertionError("no data is needed")


def test_pruning_without_training_asks_for_no_data(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefold.recipe.run.load_training_data", _no_data)
    for settings, word in ((PruneSection(flops=0.6, epochs=0), "Pruned"), (PruneSection(sparsity=0.5, epochs=0), "Set")):
        work = run_stages(ShipRecipe(ModelSection(f"{nets}:detector"), prune=settings), tmp_path / "stages")
        assert work.history[0].startswith(word)
        assert work.history[0].endswith("without fine-tuning.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PruneSection(flops=0.6), r"expected scores .*To prune without training, which needs no data, give epochs 0"),
        (PruneSection(blocks=1, epochs=0), r"expected scores .*Blocks are judged on labelled samples"),
    ],
)
def test_what_needs_data_says_so(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: PruneSection, message: str
) -> None:
    colour = ImageSet(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",), (0.5,), (0.5,))
    monkeypatch.setattr("edgefold.recipe.run.load_training_data", lambda *_, **__: TrainingData("some", colour, colour, "0"))
    with pytest.raises(UsageError, match=message):
        run_stages(ShipRecipe(ModelSection(f"{nets}:detector"), prune=settings), tmp_path / "stages")


def test_a_recipe_ships_int8_with_calibration_of_its_own(nets: Path, tmp_path: Path) -> None:
    """Two inputs, pruned without data, calibrated with the recipe's samples, any batch."""
    (tmp_path / "run.toml").write_text(
        '[model]\nname = "nets.py:guided"\n[prune]\nflops = 0.7\nepochs = 0\n'
        '[ship]\nformats = ["onnx"]\ncalibration = "nets.py:samples"\ndynamic_batch = true\nobserver = "minmax"\n'
        'timing = false\nskip = ["measure"]\n'
    )
    recipe = read_recipe(tmp_path / "run.toml")
    assert recipe.ship.calibration == f"{nets}:samples"  # relative to the recipe
    done = run_recipe(recipe, tmp_path / "out")
    assert done.bundle.shipment.passed, [variant.failure for variant in done.bundle.shipment.variants]
    assert [variant.precision for variant in done.bundle.shipment.variants] == [Precision.FP32, Precision.INT8]
    inputs = [tensor.repeat(3, 1, 1, 1) for tensor in done.work.inputs]  # a batch that the example does not have
    with torch.no_grad():
        expected = done.work.network.module(*inputs).numpy()
    (found,) = run(done.bundle.artifacts["onnx-int8"], [tensor.numpy() for tensor in inputs])
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 0.1 * (expected.max() - expected.min())


PIXELS = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STUDENT = Preprocessing(4, 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
TEACHERS = [
    Preprocessing(4, 4, (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)),
    Preprocessing(4, 4, (0.1, 0.2, 0.3), (0.7, 0.8, 0.9), colour="bgr"),
    Preprocessing(4, 4, (0.0, 0.1, 0.2), (1.0, 1.5, 2.0), divisor=1.0),
]


def _as_declared(prepare: Preprocessing) -> np.ndarray:
    """The input that a network declares for the pixels, in float64."""
    pixels = PIXELS.numpy().astype(np.float64)
    pixels = pixels[:, ::-1] if prepare.colour == "bgr" else pixels
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (prepare.mean, prepare.std))
    found: np.ndarray = (pixels / prepare.divisor - mean) / std
    return found


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("student", [STUDENT, Preprocessing(4, 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), colour="bgr"), None])
def test_a_teacher_sees_pictures_as_it_declares(teacher: Preprocessing, student: Preprocessing | None) -> None:
    images = PIXELS.flip(1) if student is not None and student.colour == "bgr" else PIXELS
    own = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if student is not None else ((), ())
    data = ImageSet(images, torch.zeros(5, dtype=torch.int64), ("a", "b"), *own)
    adapt = as_the_teacher_takes_it(data, student, teacher)
    assert adapt is not None
    np.testing.assert_allclose(adapt(data.normalised()).numpy(), _as_declared(teacher), rtol=1e-4, atol=1e-4)


def test_nothing_is_done_where_both_declare_the_same() -> None:
    data = ImageSet(PIXELS, torch.zeros(5, dtype=torch.int64), ("a", "b"), STUDENT.mean, STUDENT.std)
    assert as_the_teacher_takes_it(data, STUDENT, STUDENT) is None
    assert as_the_teacher_takes_it(data, STUDENT, None) is None


def test_distillation_prepares_the_teachers_input(nets: Path, tmp_path: Path) -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 2)
            self.lowest = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.lowest = min(self.lowest, float(x.min()))
            y: torch.Tensor = self.head(x.flatten(1))
            return y

    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    work = start(Network("student", student, torch.zeros(1, 3, 4, 4), preprocessing=STUDENT), str(nets), {})
    part = ImageSet(PIXELS, torch.arange(5) % 2, ("a", "b"), STUDENT.mean, STUDENT.std)
    training = Training(TrainingData("some", part, part, "0"), {"batch_size": 2, "crop_padding": 0, "flip": False})
    module = Teacher().eval()
    teacher = Network("teacher", module, torch.zeros(1, 3, 4, 4), preprocessing=TEACHERS[2])
    distill(work, teacher, DistillSection(epochs=1), training, tmp_path / "stages")
    assert module.lowest > -0.5  # pixels 0..255; the student's inputs go down to −2.5
