"""The stages as functions, joined by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.errors import UsageError
from edgefold.network import ShipOptions


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def test_a_fold_result_brings_its_example(tmp_path: Path) -> None:
    net, x = network(), torch.randn(1, 3, 8, 8)
    artifact = edgefold.export_model(edgefold.fold(net, x), format="onnx", out=tmp_path / "net")
    assert edgefold.verify(artifact, net, x).passed


def test_a_module_does_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="example_inputs are missing"):
        edgefold.export_model(network(), format="onnx", out=tmp_path / "net")


def test_a_format_or_precision_that_is_given_twice_counts_once() -> None:
    options = ShipOptions(formats=(Format.TFLITE, Format.ONNX, Format.TFLITE), precisions=(Precision.INT8, Precision.INT8))
    assert options.formats == (Format.TFLITE, Format.ONNX)
    assert options.precisions == (Precision.INT8,)
