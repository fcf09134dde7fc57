"""Average pooling in INT8: convolutions and means of integers, with nearly the same numbers in all runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgefold.artifact import Format, Precision
from edgefold.export.inspect import inspect
from edgefold.pipeline import export_model, quantize_model
from edgefold.runtime import run


class Pooled(nn.Module):
    """A pooling between two convolutions."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Conv2d(3, 8, 3), nn.AvgPool2d(**options), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4, H', W')."""
        return self.last(self.pool(torch.relu(self.first(x))))


def sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(found - expected).sum(), 1e-12)))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "ceil_mode": True, "count_include_pad": False},  # as in ResNet-D; 12 rows are even
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 4), "stride": 1, "divisor_override": 3},
        {"kernel_size": 12},
    ],
)
def test_a_pooling_is_in_integers(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Pooled(**options).eval(), torch.randn(1, 3, 14, 14)
    quantized = quantize_model(module, x, calibration=[torch.randn(1, 3, 14, 14) for _ in range(8)])
    outputs = []
    for format in Format:
        path = tmp_path / f"model{format.suffix}"
        export_model(quantized, x, format=format, out=path, timing=False)
        outputs.append(run(path, x.numpy())[0])
        found = inspect(path)
        assert (found.float_ops, found.conversions_inside, found.integer_mac_share) == (0, 0, 1.0)
        assert not {"AveragePool", "AVERAGE_POOL_2D"} & set(found.ops)
    with torch.no_grad():
        expected = module(x).numpy()
    for found_output in outputs:
        assert sqnr_db(expected, found_output) > 30
        assert sqnr_db(outputs[0], found_output) > 40  # ties are rounded to either side


def test_pooling_of_16_bits_stays(tmp_path: Path) -> None:
    module, x = Pooled(kernel_size=2).eval(), torch.randn(1, 3, 14, 14)
    path = tmp_path / "model.tflite"
    export_model(module, x, format=Format.TFLITE, precision=Precision.INT16X8, calibration=[x], out=path, timing=False)
    assert "AVERAGE_POOL_2D" in inspect(path).ops


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, {"kernel_size": 5, "ceil_mode": True}]
)
def test_one_that_divides_by_less_at_the_border_stays(options: dict[str, Any], tmp_path: Path) -> None:
    module, x = Pooled(**options).eval(), torch.randn(1, 3, 14, 14)
    quantized = quantize_model(module, x, calibration=[x])
    export_model(quantized, x, format=Format.EXECUTORCH, out=tmp_path / "model.pte", timing=False)
    assert inspect(tmp_path / "model.pte").float_ops == 1
