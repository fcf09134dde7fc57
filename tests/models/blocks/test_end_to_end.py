"""Every block, alone, in a file of each format, in fp32 and INT8, run in its runtime and compared with torch.

The blocks of `FAST` are those with the most unusual graphs: a product of matrices, and shuffles. Of the others, all but the ONNX
file in fp32 take long in sum, and are marked slow; so are all ExecuTorch files but one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.fold import FoldResult
from edgefold.export.program import QuantizedProgram
from edgefold.export.verify import compare, reference_outputs
from edgefold.models import blocks
from edgefold.models.blocks import (
    CBAM,
    AveragePool2d,
    ChannelAttention,
    ChannelLocalConv2d,
    ChannelShuffle,
    DepthwiseSeparableConv2d,
    DualConv2d,
    EfficientChannelAttention,
    GlobalAveragePool2d,
    GlobalMaxPool2d,
    GroupConv2d,
    HetConv2d,
    InvertedResidual,
    LocallyConnected2d,
    MaskedConv2d,
    MaxPool2d,
    NaiveHetConv2d,
    ShuffleUnit,
    ShuffleUnitV2,
    SpatialAttention,
    SqueezeExcite,
    StandardConv2d,
)

SIDE = 6
INT8_DB = 20.0  # least ratio of signal to error against the float block
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "locally-connected": lambda: LocallyConnected2d(4, 8, 3, 2, 1, input_size=SIDE),
    "eca": lambda: EfficientChannelAttention(4, gate_name="hardsigmoid"),
    "cbam": lambda: CBAM(4, 2, 3, "hardsigmoid"),
    "shuffle-unit": lambda: ShuffleUnit(4, 4),
    "shuffle-unit-strided": lambda: ShuffleUnit(4, 8, stride=2),
    "shuffle-unit-v2": lambda: ShuffleUnitV2(4, 4),
    "shuffle-unit-v2-strided": lambda: ShuffleUnitV2(4, 8, stride=2),
    "channel-shuffle": lambda: ChannelShuffle(2),
    "standard": lambda: StandardConv2d(4, 8, 3, 1, 1),
    "group": lambda: GroupConv2d(4, 8, 3, 1, 1, groups=2),
    "separable": lambda: DepthwiseSeparableConv2d(4, 8, 3, 1, 1),
    "dual": lambda: DualConv2d(4, 8, 3, 1, 1, groups=2),
    "hetconv": lambda: HetConv2d(4, 8, 3, 1, 1, p=2),
    "hetconv-loop": lambda: NaiveHetConv2d(4, 4, 3, 1, 1, p=2),
    "channel-local": lambda: ChannelLocalConv2d(4, 8, 3, 1, 1, group_size=2),
    "channel-local-sliding": lambda: ChannelLocalConv2d(4, 8, 3, 1, 1, group_size=3, window="sliding"),
    "masked": lambda: MaskedConv2d(4, 4, 3, mask=torch.ones(4, 4, 3, 3).tril().bool()),
    "inverted-residual": lambda: InvertedResidual(4, 4, expand=2),
    "inverted-residual-v3": lambda: InvertedResidual(4, 4, 5, expand=2, activation="hardswish", attention=True),
    "squeeze-excite": lambda: SqueezeExcite(4, 2, "hardsigmoid"),
    "squeeze-excite-sigmoid": lambda: SqueezeExcite(4, 2),
    "channel-attention": lambda: ChannelAttention(4, 2, "hardsigmoid"),
    "spatial-attention": lambda: SpatialAttention(3, "hardsigmoid"),
    "max-pool": lambda: MaxPool2d(4, 4, 3, 2, 1),
    "average-pool": lambda: AveragePool2d(4, 4, 3, 2, 1),
    "global-average-pool": lambda: GlobalAveragePool2d(4, 4),
    "global-max-pool": lambda: GlobalMaxPool2d(4, 4),
}
FAST = ("locally-connected", "shuffle-unit")


def is_fast(name: str, precision: Precision, form: Format) -> bool:
    if form is Format.EXECUTORCH:
        return (name, precision) == ("shuffle-unit", Precision.INT8)
    return name in FAST or (form, precision) == (Format.ONNX, Precision.FP32)


CASES = [
    pytest.param(*case, marks=() if is_fast(*case) else pytest.mark.slow)
    for case in itertools.product(BLOCKS, (Precision.FP32, Precision.INT8), Format)
]


def samples() -> torch.Tensor:
    return torch.randn(4, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@cache
def block(name: str) -> nn.Module:
    """In eval mode, with norms that are not the identity."""
    torch.manual_seed(0)
    module = BLOCKS[name]().eval()
    for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    return module


@cache
def folded(name: str) -> FoldResult:
    return edgefold.fold(block(name), samples()[:1])


@cache
def quantized(name: str) -> QuantizedProgram:
    """Calibrated on the images of the comparison."""
    images = samples()
    return edgefold.quantize_model(folded(name), images[:1], calibration=[image.unsqueeze(0) for image in images])


@pytest.mark.parametrize(("name", "precision", "form"), CASES)
def test_a_file_of_a_block_computes_what_the_block_does(name: str, precision: Precision, form: Format, tmp_path: Path) -> None:
    images = samples()
    origin = folded(name) if precision is Precision.FP32 else quantized(name)
    asked = precision if precision is Precision.FP32 else None  # a quantized program has its own
    artifact = edgefold.export_model(
        origin, images[:1], format=form, precision=asked, timing=False, out=tmp_path / f"block{form.suffix}"
    )
    outputs = edgefold.run(artifact, images.numpy(), batch=1)
    against = compare(artifact, block(name), outputs, reference_outputs(block(name), images))
    assert against.passed, against
    if isinstance(origin, QuantizedProgram):
        exact = compare(artifact, origin, outputs, reference_outputs(origin, images))
        assert exact.passed, exact
        assert (against.outputs[0].sqnr_db or math.inf) >= INT8_DB


def test_every_block_is_here() -> None:
    """Each class that `edgefold.models.blocks` exports has a file of its own above."""
    classes = {name for name in blocks.__all__ if isinstance(kind := getattr(blocks, name), type) and issubclass(kind, nn.Module)}
    assert {type(make()).__name__ for make in BLOCKS.values()} == classes
