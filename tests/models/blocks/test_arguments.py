"""What the blocks refuse, and in which words, when they are made and not in `forward` later."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.errors import UsageError
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
    conv_factory,
    hetconv_full,
)

Make = Callable[..., nn.Module]


def het(*shared: Any, **own: Any) -> nn.Module:
    return HetConv2d(*shared, **{"p": 2, **own})


def naive(*shared: Any, **own: Any) -> nn.Module:
    return NaiveHetConv2d(*shared, **{"p": 2, **own})


BLOCKS: dict[str, Make] = {
    "StandardConv2d": StandardConv2d,
    "GroupConv2d": GroupConv2d,
    "DepthwiseSeparableConv2d": DepthwiseSeparableConv2d,
    "DualConv2d": DualConv2d,
    "ChannelLocalConv2d": ChannelLocalConv2d,
    "LocallyConnected2d": LocallyConnected2d,
    "HetConv2d": het,
    "NaiveHetConv2d": naive,
    "InvertedResidual": InvertedResidual,
    "ShuffleUnit": ShuffleUnit,
    "ShuffleUnitV2": ShuffleUnitV2,
    "MaxPool2d": MaxPool2d,
    "AveragePool2d": AveragePool2d,
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("in_channels", 8.0),
        ("in_channels", True),
        ("out_channels", math.nan),
        ("out_channels", "8"),
        ("kernel_size", 3.0),
        ("kernel_size", (3, 3, 3)),
        ("kernel_size", True),
        ("stride", 1.5),
        ("stride", (1, 2.0)),
        ("padding", "same"),
        ("padding", (1,)),
        ("padding", -1),
        ("dilation", math.inf),
        ("dilation", (0, 1)),
        ("bias", 1),
    ],
)
def test_every_block_names_itself_and_the_argument(block: str, name: str, value: object) -> None:
    arguments = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, name: value}
    with pytest.raises(UsageError, match=rf"^{block}: {name} is .*, expected "):
        BLOCKS[block](**arguments)


@pytest.mark.parametrize("block", BLOCKS)
def test_numpys_integers_and_lists_are_numbers_and_pairs(block: str) -> None:
    module = BLOCKS[block](np.int64(8), np.int64(8), [3, 3], [np.int32(1), 1], 1)
    size = 28 if block == "LocallyConnected2d" else 5
    assert module(torch.randn(2, 8, size, size)).shape == (2, 8, size, size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HetConv2d(8, 8, 3, p=2.5), "^HetConv2d: p is 2.5, expected an integer of at least 1"),  # type: ignore[arg-type]
        (lambda: NaiveHetConv2d(8, 8, 3, p=True), "^NaiveHetConv2d: p is True"),
        (lambda: GroupConv2d(8, 8, 3, groups=2.0), "^GroupConv2d: groups is 2.0"),  # type: ignore[arg-type]
        (lambda: ChannelLocalConv2d(8, 8, 3, group_size=math.nan), "^ChannelLocalConv2d: group_size is nan"),  # type: ignore[arg-type]
        (lambda: ChannelLocalConv2d(8, 8, 3, window=3), "unknown window of ChannelLocalConv2d '3'"),  # type: ignore[arg-type]
        (lambda: LocallyConnected2d(8, 8, 3, input_size=(8, 8, 8)), r"^LocallyConnected2d: input_size is \(8, 8, 8\)"),  # type: ignore[arg-type]
        (lambda: LocallyConnected2d(8, 8, 3, input_size=8.5), "^LocallyConnected2d: input_size is 8.5"),  # type: ignore[arg-type]
        (lambda: InvertedResidual(8, 8, expand=math.nan), "^InvertedResidual: expand is nan, expected a positive number"),
        (lambda: InvertedResidual(8, 8, expand=math.inf), "^InvertedResidual: expand is inf"),
        (lambda: InvertedResidual(8, 8, expand="6"), "^InvertedResidual: expand is '6'"),  # type: ignore[arg-type]
        (lambda: InvertedResidual(8, 8, expand=0.01), "leaves no hidden channel of in_channels=8"),
        (lambda: InvertedResidual(8, 8, attention=2), "^InvertedResidual: attention is 2"),  # type: ignore[arg-type]
        (lambda: ShuffleUnit(8, 8, groups=2.0), "^ShuffleUnit: groups is 2.0"),  # type: ignore[arg-type]
        (lambda: ChannelShuffle(2.0), "^ChannelShuffle: groups is 2.0"),  # type: ignore[arg-type]
        (lambda: SqueezeExcite(8.0), "^SqueezeExcite: channels is 8.0"),  # type: ignore[arg-type]
        (lambda: SqueezeExcite(8, gate_name=["sigmoid"]), "unknown gate"),  # type: ignore[arg-type]
        (lambda: EfficientChannelAttention(8, 3.0), "^EfficientChannelAttention: kernel_size is 3.0, expected an odd"),  # type: ignore[arg-type]
        (lambda: SpatialAttention(math.nan), "^SpatialAttention: kernel_size is nan"),  # type: ignore[arg-type]
        (lambda: ChannelAttention(8, 2.5), "^ChannelAttention: reduction is 2.5"),  # type: ignore[arg-type]
        (lambda: CBAM(8, True), "^ChannelAttention: reduction is True"),
        (lambda: MaxPool2d(8, 8, 3, bias=True), "^MaxPool2d: bias is True, expected False"),
        (lambda: GlobalAveragePool2d(8, 9), "^GlobalAveragePool2d: out_channels is 9, expected in_channels=8"),
        (lambda: GlobalMaxPool2d(0), "^GlobalMaxPool2d: in_channels is 0"),
        (lambda: MaskedConv2d(2, 2, 1, mask=torch.ones(2, 2, 3, 3)), r"^MaskedConv2d: mask has the shape \(2, 2, 3, 3\)"),
        (
            lambda: MaskedConv2d(2, 2, 1, mask=torch.tensor([[1, 1], [0, 0]])[:, :, None, None]),
            "^MaskedConv2d: mask leaves a filter",
        ),
        (lambda: MaskedConv2d(2, 2, 1, mask=[[1]]), "^MaskedConv2d: mask is a list, expected a tensor"),  # type: ignore[arg-type]
        (lambda: hetconv_full(4, 4, 0), "^HetConv2d: p is 0, expected at least 1"),
        (lambda: HetConv2d(4, 4, 3, p=np.int64(0)), "^HetConv2d: p is 0"),  # type: ignore[arg-type]
        (lambda: HetConv2d(4, 4, 3, p=10**30), r"^HetConv2d: p is 1000.*, expected less than 2\^63"),
        (lambda: conv_factory(3), "^conv is 3, expected a name"),  # type: ignore[arg-type]
    ],
)
def test_each_blocks_own_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_shuffle_names_the_channels_that_its_groups_do_not_divide() -> None:
    with pytest.raises(UsageError, match="ChannelShuffle: groups=3 does not divide channels=8; choose a divisor of 8"):
        ChannelShuffle(3)(torch.randn(1, 8, 4, 4))
    with pytest.raises(UsageError, match=r"ChannelShuffle: the input has the shape \(8, 4, 4\)"):
        ChannelShuffle(2)(torch.randn(8, 4, 4))


def test_poolings_take_the_place_of_a_convolution() -> None:
    x = torch.randn(2, 8, 6, 6)
    for block in (MaxPool2d, AveragePool2d):
        assert block(8, 8, 3, 2, 1, 1, False)(x).shape == (2, 8, 3, 3)
    for whole in (GlobalAveragePool2d, GlobalMaxPool2d):
        assert torch.equal(whole(8, 8)(x), whole()(x))


UNITS: dict[str, Make] = {"InvertedResidual": InvertedResidual, "ShuffleUnit": ShuffleUnit, "ShuffleUnitV2": ShuffleUnitV2}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 3), ((3, 5), (2, 1))])
def test_units_keep_the_size_of_any_odd_kernel(unit: str, kernel: int | tuple[int, int], dilation: int | tuple[int, int]) -> None:
    x = torch.randn(2, 8, 9, 10)
    assert UNITS[unit](8, 8, kernel, dilation=dilation)(x).shape == x.shape
    assert UNITS[unit](8, 16, kernel, 2, dilation=dilation)(x).shape == (2, 16, 5, 5)
    assert UNITS[unit](8, 16, kernel, (1, 2), dilation=dilation)(x).shape == (2, 16, 9, 5)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "geometry", [{"kernel_size": 4}, {"padding": 0}, {"kernel_size": 5, "padding": 1}, {"dilation": 2, "padding": 1}]
)
def test_units_refuse_a_branch_of_another_size_than_what_it_is_joined_with(unit: str, geometry: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=rf"^{unit}: kernel_size .*, which it is joined with; take an odd kernel"):
        UNITS[unit](8, 8, **geometry)


def test_a_strided_shuffle_unit_agrees_with_its_pool() -> None:
    for geometry in ({"kernel_size": 4}, {"padding": 0}, {"kernel_size": 5, "padding": 1}):
        with pytest.raises(UsageError, match="another size than the pooled input"):
            UNITS["ShuffleUnit"](8, 16, stride=2, **geometry)


@pytest.mark.parametrize("geometry", [{"kernel_size": 4}, {"padding": 0}, {"kernel_size": 2, "padding": 1}])
def test_units_that_join_nothing_take_any_geometry(geometry: dict[str, int]) -> None:
    x = torch.randn(1, 8, 10, 10)
    expected = nn.Conv2d(8, 16, geometry.get("kernel_size", 3), 2, geometry.get("padding", 1))(x).shape
    for unit in ("InvertedResidual", "ShuffleUnitV2"):
        assert UNITS[unit](8, 16, stride=2, **geometry)(x).shape == expected
    assert InvertedResidual(8, 16, padding=0)(x).shape == (1, 16, 8, 8)


MODULES = [
    name for name in blocks.__all__ if isinstance(getattr(blocks, name), type) and issubclass(getattr(blocks, name), nn.Module)
]
SHARED = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "bias")


@pytest.mark.parametrize("name", MODULES)
def test_every_block_says_where_it_is_from_and_how_it_starts(name: str) -> None:
    block = getattr(blocks, name)
    assert "Initialisation: " in block.__doc__
    source = inspect.getmodule(block)
    assert source is not None
    assert re.search(r"(et al\.|LeCun), .*(19|20)\d\d", str(source.__doc__).replace("\n", " "))


@pytest.mark.parametrize("name", MODULES)
def test_every_convolution_has_the_shared_arguments_in_their_places(name: str) -> None:
    """Only what keeps its channels and has no window has other arguments, as the package's docstring says."""
    given = tuple(inspect.signature(getattr(blocks, name)).parameters)
    if name in ("GlobalAveragePool2d", "GlobalMaxPool2d"):
        assert given == SHARED[:2]
    elif name in ("CBAM", "ChannelAttention", "EfficientChannelAttention", "SqueezeExcite"):
        assert given[0] == "channels"
    elif name in ("ChannelShuffle", "SpatialAttention"):
        assert not set(given) & {"channels", *SHARED} - {"kernel_size"}
    else:
        assert given[: len(SHARED)] == SHARED


@pytest.mark.parametrize("name", MODULES)
def test_weights_start_as_the_docstring_says(name: str) -> None:
    """Biases of every block are zero, and no weight that exists is."""
    if name == "MaskedConv2d":
        module: nn.Module = MaskedConv2d(8, 8, 3, bias=True, mask=torch.ones(8, 8, 3, 3))
    elif name in BLOCKS:
        pooled = name in ("MaxPool2d", "AveragePool2d")
        module = BLOCKS[name](8, 8, 3, 1, 1, 1, not pooled)
    else:
        module = getattr(blocks, name)(
            *{"ChannelShuffle": (2,), "SpatialAttention": (3,)}.get(name, (8,) if "Pool" not in name else ())
        )
    norms = {f"{path}." for path, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for key, value in module.named_parameters():
        if any(key.startswith(norm) for norm in norms):
            continue
        if key.endswith("bias"):
            assert not value.any(), key
        else:
            assert value.any(), key
