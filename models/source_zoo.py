"""Models of timm and torchvision by name. Nothing is downloaded unless the caller passes ``pretrained=True`` or ``weights=…``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from edgefold.errors import MissingExtraError, ModelError, UsageError
from edgefold.models.loaded import LoadedModel, example_image
from edgefold.preprocess import Preprocessing


def from_timm(name: str, kwargs: dict[str, Any]) -> LoadedModel:
    """``timm.create_model(name, **kwargs)`` with its input size and normalisation.

    Raises:
        MissingExtraError: timm is not installed.
        UsageError: timm has no such model, or refuses an argument.
    """
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError("timm", "zoo", f"model 'timm:{name}'") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    module = _made("timm", name, kwargs, lambda: timm.create_model(name, **kwargs))
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]  # timm does not type it
    channels, height, width = config["input_size"]
    mean = tuple(config["mean"])
    preprocess = None
    if channels in (1, 3) and len(mean) == channels:  # with other channels (in_chans=…) the mean is still that of RGB
        preprocess = Preprocessing(
            height,
            width,
            mean,
            std=tuple(config["std"]),
            colour="gray" if channels == 1 else "rgb",
            resize="crop",
            shorter_side=int(max(height, width) / float(config["crop_pct"])),
            interpolation=str(config["interpolation"]),
        )
    return LoadedModel(name, module, (example_image((channels, height, width)),), preprocess=preprocess)


def from_torchvision(name: str, kwargs: dict[str, Any]) -> LoadedModel:
    """``torchvision.models.get_model(name, **kwargs)`` with the input size and normalisation of its default weights.

    Raises:
        MissingExtraError: torchvision is not installed.
        UsageError: torchvision has no such model, or refuses an argument.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "zoo", f"model 'torchvision:{name}'") from error
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    known = inspect.signature(models.get_model_builder(name)).parameters
    # Without these a detector downloads its backbone, and some old networks warn about a coming default.
    defaults = {key: value for key, value in (("weights_backbone", None), ("init_weights", True)) if key in known}
    module = _made("torchvision", name, kwargs, lambda: models.get_model(name, **{**defaults, **kwargs}))
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    crop = getattr(transforms, "crop_size", None)
    if crop is None:  # detection and segmentation: any size, normalised inside or by the caller
        return LoadedModel(name, module, (example_image((3, 320, 320)),))
    side = int(crop[0])
    preprocess = Preprocessing(
        side,
        side,
        mean=tuple(float(value) for value in transforms.mean),
        std=tuple(float(value) for value in transforms.std),
        resize="crop",
        shorter_side=int(transforms.resize_size[0]),
        interpolation=str(transforms.interpolation.value),
    )
    return LoadedModel(name, module, (example_image((3, side, side)),), preprocess=preprocess)


def _made(zoo: str, name: str, kwargs: dict[str, Any], make: Callable[[], object]) -> nn.Module:
    try:
        module = make()
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UsageError(f"{zoo} cannot make '{name}' with {given or 'no arguments'}: {error}") from error
    except OSError as error:  # a download that was asked for
        raise ModelError(f"{zoo} cannot get the weights of '{name}': {error}; give a local file of weights instead") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{zoo} made a {type(module).__name__} for '{name}', expected a torch.nn.Module")
    return module


def _unknown(zoo: str, name: str, names: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{zoo}:{near[0]}'?" if near else f"expected one of its {len(names)} models"
    return UsageError(f"unknown {zoo} model '{name}'; {hint}")
