"""Models from where they are: a built-in name, a model zoo, the user's own code, or a file.

    hetnet-fmnist                built in (see `edgefold.models.registry`)
    timm:mobilenetv3_small_100   of timm or torchvision (extra ``zoo``), seeded weights unless ``weights`` or ``pretrained=True``
    torchvision:mobilenet_v2
    path/file.py:factory         ``factory(**kwargs)`` of the user's file
    path/model.onnx              an ONNX file, rebuilt as a module (see `edgefold.models.from_onnx`)
    path/model.pt2               an exported program; it can run code when loaded, hence ``trust``
    path/network.json            what ``edgefold prune``, ``distill`` or a recipe made of another source

``weights`` names a safetensors file, or a ``.pt`` with a state dictionary, which is read as tensors only (see
`edgefold.models.source_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgefold.errors import ModelError, UsageError
from edgefold.models.derived import read_record, rebuilt
from edgefold.models.from_onnx.source import from_onnx
from edgefold.models.loaded import LabelledImages, LoadedModel, checked, example_image
from edgefold.models.recipe import checkpoint_names, load_recipe
from edgefold.models.registry import builtin_slice, get_model
from edgefold.models.source_files import from_exported, from_python
from edgefold.models.source_weights import load_state
from edgefold.models.source_zoo import from_timm, from_torchvision
from edgefold.preprocess import Preprocessing

__all__ = ["LabelledImages", "LoadedModel", "Preprocessing", "load_source"]

_WEIGHTS_ONLY = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_ONNX = ".onnx"
_ARTIFACTS = (".tflite", ".pte")


def load_source(
    spec: str, *, kwargs: Mapping[str, Any] | None = None, weights: Path | None = None, trust: bool = False
) -> LoadedModel:
    """The model that ``spec`` names, in eval mode, with example inputs and what else its source tells.

    Args:
        spec: see the module docstring.
        kwargs: arguments for the function that makes the model; for an ``.onnx`` file, sizes of dimensions that it leaves open.
        weights: a file of weights to load into it.
        trust: allow a ``.pt2`` file, which can run code when loaded.

    Raises:
        UsageError: an unknown name or argument, or options that do not go together.
        ModelError: no such file, not a model, weights that do not fit, NaN in the weights, or an untrusted ``.pt2``.
        UnsupportedError: an ``.onnx`` file with an op that is not read, or of a quantized network.
        MissingExtraError: the zoo is not installed.
    """
    arguments = dict(kwargs or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that every command sees the same network where weights are random
        loaded = _load(spec, arguments, trust)
    if weights is not None:
        notes = load_state(loaded.module, weights)
        loaded = replace(loaded, accuracy=None, notes=notes)  # the recorded accuracy was of other weights
    checked(loaded.module, spec)
    return loaded


def _load(spec: str, kwargs: dict[str, Any], trust: bool) -> LoadedModel:
    zoo, colon, name = spec.partition(":")
    if colon and zoo == "timm":
        return from_timm(name, kwargs)
    if colon and zoo == "torchvision":
        return from_torchvision(name, kwargs)
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return from_python(Path(file), factory, kwargs)
    path = Path(spec)
    if path.suffix in (".py", ".pt2", ".json", _ONNX, *_WEIGHTS_ONLY, *_ARTIFACTS) or path.exists() or len(path.parts) > 1:
        return _from_path(path, kwargs, trust)
    return _builtin(spec, kwargs)


def _from_path(path: Path, kwargs: dict[str, Any], trust: bool) -> LoadedModel:
    if not path.exists():
        raise ModelError(f"there is no file '{path}'; give the path of a model file or the name of a built-in model")
    if path.suffix == ".py":
        raise ModelError(f"'{path}' is Python code; name its function that makes the model, as in '{path}:make_model'")
    if path.suffix in _WEIGHTS_ONLY:
        raise ModelError(
            f"'{path}' holds weights and no network; name the network and give the file as its weights, "
            f"as in 'model.py:make_model --weights {path}'"
        )
    if path.suffix in _ARTIFACTS:
        raise ModelError(
            f"'{path}' is an exported artifact, expected a PyTorch or ONNX model; give the model that it was made from"
        )
    if path.suffix == _ONNX:
        return from_onnx(path, kwargs)
    if path.suffix == ".json":
        return _derived(path, kwargs, trust)
    if path.suffix != ".pt2":
        raise ModelError(
            f"'{path}' is not a model file; expected file.py:function, an .onnx or .pt2 file, a network.json or a built-in name"
        )
    if kwargs:
        raise UsageError(f"'{path}' is an exported program and takes no arguments, but {', '.join(sorted(kwargs))} was given")
    if not trust:
        raise ModelError(
            f"'{path}' is an exported program, which can run code of its author when it is loaded; "
            "give --trust (trust=True) if you know where it comes from"
        )
    return from_exported(path)


def _derived(path: Path, kwargs: dict[str, Any], trust: bool) -> LoadedModel:
    record = read_record(path)
    if kwargs:
        raise UsageError(f"'{path}' is trained and takes no arguments, but {', '.join(sorted(kwargs))} was given")
    base = _load(record.source, dict(record.kwargs), trust)
    module = rebuilt(record, path, base.module, base.example_inputs)
    return replace(base, name=f"{base.name}-{path.resolve().parent.name}", module=module, accuracy=record.accuracy)


def _builtin(name: str, kwargs: dict[str, Any]) -> LoadedModel:
    module = get_model(name, **kwargs)
    channels, height, width = _input_size(name, module)
    if name not in checkpoint_names():
        return LoadedModel(name, module, (example_image((channels, height, width)),))
    recipe = load_recipe(name)
    data = builtin_slice()
    evaluation = LabelledImages.of(data.evaluation)
    return LoadedModel(
        name=name,
        module=module,
        example_inputs=(evaluation.images[:1].clone(),),
        calibration=LabelledImages.of(data.calibration),
        evaluation=evaluation,
        labels=recipe.classes,
        preprocess=Preprocessing(height, width, recipe.mean, recipe.std, "gray" if channels == 1 else "rgb", resize="stretch"),
        data=recipe.data,
        accuracy=recipe.accuracy,
    )


def _input_size(name: str, module: object) -> tuple[int, int, int]:
    size = getattr(module, "input_size", None)
    if not (isinstance(size, tuple) and len(size) == 3):
        raise ModelError(f"built-in model '{name}' has no input_size (C, H, W); this is a fault of Edgefold, please report it")
    return size
