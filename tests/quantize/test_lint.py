"""What is wrong with calibration data."""

from __future__ import annotations

import pytest
import torch

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
    ],
)
def test_each_fault_is_found_and_no_other(change: object, words: str) -> None:
    findings = lint(change(_pictures()), PREPARE)  # type: ignore[operator]  # a function, as all above
    assert len(findings) == 1
    assert words in findings[0]


def test_vectors_are_no_images() -> None:
    assert lint([(torch.randn(1, 8),) for _ in range(40)], PREPARE) == ()
