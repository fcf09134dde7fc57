"""The networks of `int8_matrix` and the images that they are calibrated and judged on; everything is seeded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgefold.models.sources import load_source

SIZE = 160
CALIBRATION, JUDGED = 32, 16


@dataclass(frozen=True, slots=True)
class Case:
    """One network with its inputs, each (1, C, H, W)."""

    name: str
    module: nn.Module
    calibration: list[Tensor]
    judged: list[Tensor]
    weights: str  # where they come from


def make_case(name: str) -> Case:
    """A network with its inputs.

    One that is built in and trained has its weights and its own data. One that is built in and untrained, and ``timm:NAME`` or
    ``torchvision:NAME``, have seeded weights, seeded images and random BatchNorm scales, shifts and statistics.
    """
    torch.manual_seed(0)
    if ":" not in name:
        source = load_source(name)
        if source.calibration is None:
            return _seeded(name, source.module, tuple(source.example_inputs[0].shape[1:]))
        needed = CALIBRATION + JUDGED
        images = source.calibration.images[:needed].unsqueeze(1)
        return Case(name, source.module.eval(), list(images[:CALIBRATION]), list(images[CALIBRATION:needed]), "trained")
    zoo, _, model = name.partition(":")
    module = _timm(model) if zoo == "timm" else _torchvision(model)
    return _seeded(name, module, (3, *_size(module)))


def _seeded(name: str, module: nn.Module, shape: tuple[int, ...]) -> Case:
    """A network of random weights on textures of a shape (C, H, W)."""
    randomize(module)
    images = textures(CALIBRATION + JUDGED, seed=1, shape=shape).unsqueeze(1)
    return Case(name, module.eval(), list(images[:CALIBRATION]), list(images[CALIBRATION:]), "seeded")


def _size(module: nn.Module) -> tuple[int, int]:
    """The side lengths of the images: SIZE, or those of the network's own data where it takes no others."""
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, SIZE, SIZE))
    except (RuntimeError, AssertionError, ValueError):
        config: Any = module.pretrained_cfg  # of timm
        _, height, width = config["input_size"]
        return int(height), int(width)
    return SIZE, SIZE


def randomize(module: nn.Module) -> None:
    """Random scales, shifts and statistics for every BatchNorm."""
    generator = torch.Generator().manual_seed(2)

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) + 0.5

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator) * 0.1

    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                if part.affine:
                    part.weight.copy_(uniform(part.weight))
                    part.bias.copy_(normal(part.bias))
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.copy_(normal(part.running_mean))
                    part.running_var.copy_(uniform(part.running_var))


def textures(count: int, *, seed: int, shape: tuple[int, ...] = (3, SIZE, SIZE)) -> Tensor:
    """Images (count, C, H, W) of ``shape`` (C, H, W) with structure at several scales, zero mean and unit variance each."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    images = torch.zeros(count, channels, height, width)
    for part in (32, 8, 2, 1):  # pixels of a cell
        cells = (max(1, height // part), max(1, width // part))
        noise = torch.randn(count, channels, *cells, generator=generator)
        images += nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    axes = (1, 2, 3)
    return (images - images.mean(axes, keepdim=True)) / images.std(axes, keepdim=True)


def _timm(name: str) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=1000)
    return module


def _torchvision(name: str) -> nn.Module:
    import torchvision

    known = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    extra: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    if "weights_backbone" in known:
        extra["weights_backbone"] = None
    module: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    if hasattr(module, "head") and hasattr(module, "anchor_generator"):
        return _Heads(module)
    return _Only(module, "out") if hasattr(module, "backbone") else module


class _Heads(nn.Module):
    """What the heads of a detector give, boxes and scores side by side (1, anchors, 4 + classes), before they are chosen."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(list(self.backbone(images).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], dim=2)


class _Only(nn.Module):
    """One of the outputs of a network that gives a dictionary."""

    def __init__(self, module: nn.Module, key: str) -> None:
        super().__init__()
        self.module, self.key = module, key

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.module(images)[self.key]
        return found
