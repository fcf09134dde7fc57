"""What is wrong with calibration data."""

from __future__ import annotations

import pytest
import torch

from edgefold.models.data import FASHION_MNIST_FOLDER, FASHION_MNIST_MEAN, FASHION_MNIST_STD, read_fashion_mnist
from edgefold.preprocess import Preprocessing
from edgefold.quantize.lint import lint

PREPARE = Preprocessing(16, 16, (0.5,) * 3, (0.25,) * 3)  # values in [-2, 2]
Samples = list[tuple[torch.Tensor, ...]]


def _pictures(count: int = 40) -> Samples:
    """Smooth images that fill the declared range."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=True)
    return [(sample.clamp(-2, 2),) for sample in (smooth[index : index + 1] for index in range(count))]


def test_good_data_has_no_findings() -> None:
    assert lint(_pictures(), PREPARE) == ()
    assert lint(_pictures()) == ()


def _noise(samples: Samples) -> Samples:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(sample[0].shape, generator=generator) * 4 - 2,) for sample in samples]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda samples: samples[:5], "only 5 calibration samples"),
        (lambda samples: [*samples, samples[0], samples[1]], "2 of 42 calibration samples are copies"),
        (lambda samples: [*samples[:-1], (torch.full((1, 3, 16, 16), 0.5),)], "1 of 40 calibration samples have one value"),
        (_noise, "looks like random numbers"),
        (lambda samples: [((sample[0] + 2) * 63.75,) for sample in samples], "raw pixels?"),
        (lambda samples: [(sample[0] * 1.5,) for sample in samples], "gives [-2, 2]"),
        (lambda samples: [(sample[0] / 10,) for sample in samples], "fill little of it"),
        (lambda samples: [*samples[:-1], (_flat_channels(),)], "1 of 40 calibration samples have one value"),
        (lambda samples: [*samples, *_with_noise(samples[:3])], "3 of 43 calibration samples are nearly copies"),
        (lambda samples: [((sample[0] + 2) / 4,) for sample in samples], "scaled to [0, 1]"),
        (lambda samples: [((sample[0] + 2) * 0.17,) for sample in samples], "scaled to [0, 1]"),  # of dim pictures
        (lambda samples: [(sample[0] / 2,) for sample in samples], "scaled to [-1, 1]"),
    ],
)
def test_each_fault_is_found_and_no_other(change: object, words: str) -> None:
    findings = lint(change(_pictures()), PREPARE)  # type: ignore[operator]  # a function, as all above
    assert len(findings) == 1
    assert words in findings[0]


def _flat_channels() -> torch.Tensor:
    """One colour everywhere: each channel has a value of its own."""
    return torch.tensor([-0.5, 0.25, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16).contiguous()


def _with_noise(samples: Samples) -> Samples:
    generator = torch.Generator().manual_seed(2)
    return [((sample[0] + 0.01 * torch.randn(sample[0].shape, generator=generator)).clamp(-2, 2),) for sample in samples]


def test_pixels_divided_by_255_do_not_fit_a_mean_of_a_half() -> None:
    samples: Samples = [((sample[0] + 2) / 4,) for sample in _pictures()]
    (finding,) = lint(samples, Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3))
    assert "lie in [0, 1], the declared normalisation gives [-1, 1]" in finding
    assert lint(samples, Preprocessing(16, 16, (0.0,) * 3, (1.0,) * 3)) == ()


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="Fashion-MNIST is not installed")
def test_fashion_mnist_has_no_findings() -> None:
    images = read_fashion_mnist().train.images[:500].float() / 255
    for mean, std in ((FASHION_MNIST_MEAN[0], FASHION_MNIST_STD[0]), (0.5, 0.5), (0.0, 1.0)):
        samples = [((images[index : index + 1] - mean) / std,) for index in range(len(images))]
        assert lint(samples, Preprocessing(28, 28, (mean,), (std,), "gray")) == ()


@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
def test_parts_of_photographs_have_no_findings(name: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    photo = datasets.load_sample_image(name)  # uint8, (427, 640, 3)
    prepare = Preprocessing(96, 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    corners = [(top, left) for top in range(0, 320, 48) for left in range(0, 540, 80)]
    samples = [(torch.from_numpy(prepare(photo[top : top + 96, left : left + 96])),) for top, left in corners]
    assert lint(samples, prepare) == ()


def test_vectors_are_no_images() -> None:
    assert lint([(torch.randn(1, 8),) for _ in range(40)], PREPARE) == ()
