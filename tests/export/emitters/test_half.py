"""FP16 files: half the size, close to float64 torch, weights in float16 in the file."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgefold.artifact import Artifact, Format, Precision

Emitted = Callable[..., Artifact]
Run = Callable[..., dict[str, NDArray[Any]]]
MakeNet = Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]


@pytest.mark.parametrize("format", list(Format))
def test_outputs_are_within_float16_rounding(format: Format, make_net: MakeNet, emitted: Emitted, run: Run) -> None:
    artifact = emitted("residual", format, Precision.FP16)
    module, _ = make_net("residual")
    torch.manual_seed(3)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = module.double()(x.double()).numpy()
    assert artifact.inputs[0].dtype == artifact.outputs[0].dtype == "float32"
    found = run(artifact.path, {"x": x.numpy()})["output"]
    # 2^-11 relative rounding of every weight (and of activations, where the format computes in float16), a few layers deep.
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-7 < error < 5e-3


@pytest.mark.parametrize("format", [Format.ONNX, Format.TFLITE])  # XNNPACK takes conv weights in float32 only
def test_weights_take_half_the_bytes(format: Format, emitted: Emitted) -> None:
    weights = 16 * 3 * 9 + 16 * 4 * 9 + 16 * 16 + 24 * 16 * 9 + 240
    saved = emitted("residual", format).size_bytes - emitted("residual", format, Precision.FP16).size_bytes
    # Each cast takes some bytes of its own.
    assert saved > 2 * weights - 2500
