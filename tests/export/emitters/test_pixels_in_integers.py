"""Camera pixels into files that are integer from input to output: what pads the image there is an integer, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Format
from edgefold.export.inspect import read
from edgefold.export.inspectors.base import Kind
from edgefold.preprocess import Preprocessing

PIXELS = torch.randint(0, 256, (16, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PREPARE = Preprocessing(12, 12, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Wide(nn.Module):
    """Pads what is no image any more with a value of its own, and with the values at its border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(F.pad(torch.relu(self.stem(x)), (1, 1, 1, 1), value=0.7)))
        z: Tensor = self.last(F.pad(y, (0, 2, 1, 0), value=0.3))
        return z


@pytest.mark.parametrize("format", Format)
def test_pads_in_integers(format: Format, tmp_path: Path) -> None:
    net = Wide().eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PREPARE.mean, PREPARE.std))
    images = (PIXELS.float() / 255 - mean) / std
    quantized = edgefold.quantize_model(
        net, images[:1], calibration=images, scheme="int8-full", observer="minmax", pixels=PREPARE, io="uint8"
    )
    artifact = edgefold.export_model(quantized, format=format, io="uint8", timing=False, out=tmp_path / "net")
    assert {op.kind for op in read(artifact.path).ops} == {Kind.INTEGER}
    assert artifact.inputs[0].pixel_mean is not None
    (found,) = edgefold.run(artifact, [images.numpy()], batch=1)
    (end,) = artifact.outputs
    assert end.scale is not None
    assert end.zero_point is not None
    real = found if found.dtype == np.float32 else (found.astype(np.float32) - end.zero_point) * end.scale
    expected = net(images).detach().numpy()
    noise, power = np.square(real - expected).sum(), np.square(expected).sum()
    assert 10 * np.log10(power / noise) > 30
