"""The networks of `int8_matrix` and the images that they are calibrated and judged on; everything is seeded."""

from __future__ import annotations

from dataclasses import dataclass

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
    """A built-in network with its trained weights and its own data, or ``timm:NAME`` or ``torchvision:NAME`` with seeded weights.

    The latter get random BatchNorm scales, shifts and statistics.
    """
    torch.manual_seed(0)
    if ":" not in name:
        source = load_source(name)
        if source.calibration is None:
            raise SystemExit(f"model '{name}' brings no calibration data")
        needed = CALIBRATION + JUDGED
        images = source.calibration.images[:needed].unsqueeze(1)
        return Case(name, source.module.eval(), list(images[:CALIBRATION]), list(images[CALIBRATION:needed]), "trained")
    zoo, _, model = name.partition(":")
    module = _timm(model) if zoo == "timm" else _torchvision(model)
    randomize(module)
    images = textures(CALIBRATION + JUDGED, seed=1).reshape(-1, 1, 3, SIZE, SIZE)
    return Case(name, module.eval(), list(images[:CALIBRATION]), list(images[CALIBRATION:]), "seeded")


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


def textures(count: int, *, seed: int) -> Tensor:
    """Images (count, 3, SIZE, SIZE) with structure at several scales, zero mean and unit variance each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, SIZE, SIZE)
    for cells in (5, 20, 80, SIZE):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, size=(SIZE, SIZE), mode="bilinear")
    axes = (1, 2, 3)
    return (images - images.mean(axes, keepdim=True)) / images.std(axes, keepdim=True)


def _timm(name: str) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=1000)
    return module


def _torchvision(name: str) -> nn.Module:
    import torchvision

    extra = {"init_weights": False} if name == "googlenet" else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    return module
