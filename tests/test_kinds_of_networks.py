"""Networks that are no image classifiers, through every stage: several inputs and outputs, dense outputs, sound over time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgefold
from edgefold.device_bench import BenchOptions
from edgefold.network import Network, ShipOptions
from edgefold.shipping import ship_network


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise and pointwise convolution over time, each with BatchNorm and ReLU (DS-CNN, Zhang et al., arXiv:1711.07128)."""
    return nn.Sequential(
        nn.Conv1d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm1d(inputs),
        nn.ReLU(),
        nn.Conv1d(inputs, outputs, 1, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
    )


class Keywords(nn.Module):
    """Keyword spotting: (B, 40 coefficients, 49 frames) -> (B, 12 words)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(40, 16, 5, 2, 2), nn.ReLU(), _unit(16, 16), _unit(16, 24, 2))
        self.head = nn.Linear(24, 12)

    def forward(self, sound: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(sound).mean(2))
        return y


class Detector(nn.Module):
    """Two heads on one map, as detectors have: scores and boxes, (B, anchors, ...)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6())
        self.scores, self.boxes = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        scores = self.scores(features).permute(0, 2, 3, 1).flatten(1, 2)
        boxes = self.boxes(features).permute(0, 2, 3, 1).reshape(len(image), -1, 4)
        return {"scores": scores.sigmoid(), "boxes": boxes}


class Segmenter(nn.Module):
    """An image and a guiding mask -> a map of classes of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.mask = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(1, 8, 3, 2, 1)
        self.middle, self.classes = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        features = torch.relu(self.middle(torch.relu(self.image(image) + self.mask(mask))))
        upright = nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")
        y: Tensor = self.classes(upright)
        return y


CASES: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "sound": (Keywords, ((40, 49),)),
    "detector": (Detector, ((3, 16, 16),)),
    "segmenter": (Segmenter, ((3, 16, 16), (1, 16, 16))),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_stage_takes_it(case: str, tmp_path: Path) -> None:
    make, shapes = CASES[case]
    torch.manual_seed(0)
    module = make().eval()
    batches = [tuple(torch.randn(1, *shape) for shape in shapes) for _ in range(16)]
    network = Network(case, module, batches[0], calibration=batches)
    options = ShipOptions(bench=BenchOptions(processes=2, max_secs=2.0), timing=False, explain=False, parity_samples=8)
    bundle = ship_network(network, tmp_path / "out", options)
    shipment = bundle.shipment
    problems = [variant.failure.message for variant in shipment.variants if variant.failure is not None]
    assert problems == []
    assert shipment.passed
    assert len(shipment.variants) == 6
    for variant in shipment.variants:
        assert variant.measurement is not None
        assert variant.measurement.parity or variant.parity is not None
    inputs = [tensor.numpy() for tensor in batches[1]]
    with torch.no_grad():
        expected = module(*batches[1])
    tensors = list(expected.values()) if isinstance(expected, dict) else [expected]
    for name, artifact in bundle.artifacts.items():
        found = edgefold.run(artifact, inputs)
        assert [array.shape for array in found] == [tuple(tensor.shape) for tensor in tensors]
        tolerance = 1e-4 if name.endswith("fp32") else 0.1
        for array, tensor in zip(found, tensors, strict=True):
            spread = float(tensor.max() - tensor.min())
            assert abs(array - tensor.numpy()).max() <= tolerance * spread, name
