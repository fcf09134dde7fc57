"""Weights from files, as tensors only: safetensors, or a ``.pt`` with a state dictionary, as training code leaves it.

What trains a network often stores its state inside another dictionary, beside the optimizer's, or under names that a wrapper
has put a prefix to. Both are taken off, and it is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to catch it: torch.load raises it for whatever is not a tensor
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgefold.errors import ModelError, first_line
from edgefold.models.packing import read_weights, unpack_state

WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
# Of DataParallel and its kin, torch.compile, and Lightning.
PREFIXES: Final = ("module.", "_orig_mod.", "model.")
_COUNTER: Final = "n_averaged"  # beside the prefixed names of torch's AveragedModel


def load_state(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Loads a safetensors file or a ``.pt`` with a state dictionary (tensors only) into ``module``.

    Returns:
        What was taken off to reach the network's own names, a sentence each.

    Raises:
        ModelError: the file cannot be read, holds more than tensors, does not fit the module, or holds NaN.
    """
    found, notes = (read_weights(path), []) if path.suffix == ".safetensors" else _unwrapped(_read(path), path)
    state, prefix = without_prefix(found, module.state_dict())
    if prefix:
        notes.append(f"Weights of {path.name}: the prefix '{prefix}' of all names was left out.")
    unpack_state(module, state, str(path))
    return tuple(notes)


def without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state under the network's names, and the prefix that was taken off: one that all have, and none of ``own``."""
    found, taken = dict(state), ""
    while prefix := next((prefix for prefix in PREFIXES if _all_have(prefix, found, own)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items() if name != _COUNTER}
        taken += prefix
    return found, taken


def _all_have(prefix: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    names = [name for name in state if name != _COUNTER]
    return bool(names) and all(name.startswith(prefix) for name in names) and not any(name.startswith(prefix) for name in own)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no weights file '{path}'; give a .safetensors or .pt file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes of any other file are instructions to the unpickler, which may raise anything
        raise ModelError(
            f"'{path}' cannot be read as tensors only ({_reason(error)}); save the state dictionary with "
            "torch.save(model.state_dict(), …) or as safetensors"
        ) from error


def _unwrapped(found: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dictionary inside what a file holds, and what was around it."""
    notes: list[str] = []
    while key := _wrapper(found):
        beside = sorted(str(other) for other in found if other != key)
        rest = f"; {', '.join(beside)} beside it {'was' if len(beside) == 1 else 'were'} passed over" if beside else ""
        notes.append(f"Weights of {path.name}: taken from '{key}'{rest}.")
        found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"'{path}' holds a {type(found).__name__} that is not a state dictionary; save model.state_dict()")
    return {str(name): value for name, value in found.items()}, notes


def _wrapper(found: Any) -> str | None:
    """The key under which a state dictionary stands, if it stands under one."""
    if not isinstance(found, dict):
        return None
    return next((key for key in WRAPPERS if isinstance(found.get(key), dict)), None)


def _reason(error: Exception) -> str:
    """Why torch cannot read a file of weights, without its colours and without its advice to read it unsafely."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, UnpicklingError) and "weights_only" in text:
        return f"it holds Python objects, of '{found[1]}'" if found else "it holds Python objects"
    if not isinstance(error, (UnpicklingError, RuntimeError, OSError)):
        return "torch.save did not write it, or it is damaged"
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))
