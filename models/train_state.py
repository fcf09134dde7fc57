"""What a training run is at an epoch boundary, and its checkpoint file.

A checkpoint is one safetensors file: tensors ``model/…``, ``ema/…`` and ``optimizer/<parameter>/…``, and the metadata ``run``, a
JSON object of the options, the hash of the data as it is prepared, and the history. Random numbers need no state of their own:
each epoch draws from a generator seeded by the seed and the epoch's number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from edgefold.artifact import atomic_path
from edgefold.errors import ModelError, UsageError


class ExponentialAverage:
    """An exponential moving average of a module's parameters and buffers.

    avg ← d·avg + (1 − d)·value, with d = min(decay, (1 + t)/(10 + t)) at step t, so that the random start is soon forgotten.
    Integer buffers are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the module's values after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floats: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                floats.append(self.tensors[name])
                values.append(value.detach())
            else:
                self.tensors[name].copy_(value)
        torch._foreach_lerp_(floats, values, 1.0 - decay)


def copy_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the module's own tensors the values of ``tensors``, which has all their names."""
    for name, value in module.state_dict().items():
        value.copy_(tensors[name])


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What must be equal for a run to be the continuation of another, and its history so far."""

    options: Mapping[str, Any]
    data_sha256: str  # `edgefold.models.data.TrainingData.prepared_sha256`
    history: tuple[Mapping[str, float], ...]


def save_training(path: Path, header: RunHeader, module: nn.Module, average: ExponentialAverage, optimizer: Optimizer) -> None:
    """Writes a checkpoint, atomically: a run killed at any moment leaves the old one or the new one."""
    tensors = {f"model/{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in average.tensors.items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
    run = {"options": dict(header.options), "data_sha256": header.data_sha256, "history": [dict(row) for row in header.history]}
    with atomic_path(path, force=True) as temporary:
        # Clones: the format refuses tensors that share memory, as those of tied modules do.
        copies = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
        save_file(copies, temporary, {"run": json.dumps(run)})


def load_training(
    path: Path, expected: RunHeader, module: nn.Module, average: ExponentialAverage, optimizer: Optimizer
) -> RunHeader:
    """Brings module, average and optimizer to the state of a checkpoint; returns its header.

    Raises:
        ModelError: the file is no training checkpoint, or one of another network.
        UsageError: it is of a run with other options or other data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            run = json.loads((file.metadata() or {})["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"'{path}' is not a training checkpoint: {error}; delete it to start anew") from error
    header = RunHeader(run["options"], run["data_sha256"], tuple(run["history"]))
    for key, value in expected.options.items():
        if header.options.get(key) != value:
            raise UsageError(
                f"'{path}' was trained with {key}={header.options.get(key)}, but now {key}={value}; "
                "a run is resumed with the same options"
            )
    if header.data_sha256 != expected.data_sha256:
        raise UsageError(
            f"'{path}' was trained on other data, or on data prepared in another way (SHA-256 {header.data_sha256[:12]}…); "
            "resume it with the same data and preprocessing"
        )
    _restore(path, tensors, module, average, optimizer)
    return header


def _restore(
    path: Path, tensors: Mapping[str, Tensor], module: nn.Module, average: ExponentialAverage, optimizer: Optimizer
) -> None:
    state = module.state_dict()
    for prefix, targets in (("model/", state), ("ema/", average.tensors)):
        for name, target in targets.items():
            value = tensors.get(prefix + name)
            if value is None or value.shape != target.shape:
                found = "no such tensor" if value is None else f"shape {tuple(value.shape)}"
                raise ModelError(f"'{path}' is of another network: '{name}' has {found}, expected {tuple(target.shape)}")
            target.copy_(value)
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, _, slot = key.removeprefix("optimizer/").rpartition("/")  # a module's name may hold slashes
            parameter = parameters[name]
            # Slots of a parameter's shape take its memory format too: the same arithmetic as in an uninterrupted run.
            kept = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            optimizer.state[parameter][slot] = kept.detach()
