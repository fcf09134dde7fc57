"""State dictionaries and files that hold effective weights only.

A masked convolution (`edgefold.models.blocks.masked.MaskedConv2d`) has a dense weight (N, M, Kh, Kw), of which only the entries
inside the mask exist for the model. Packed, its ``weight`` is the vector of those entries in row-major order. The mask follows
from the constructor's arguments, so nothing is lost. BatchNorm's ``num_batches_tracked`` plays no part in inference
and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgefold.artifact import atomic_path
from edgefold.errors import ModelError
from edgefold.models.blocks.masked import MaskedConv2d

_UNUSED = "num_batches_tracked"


def pack_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with the weights of masked convolutions packed."""
    masks = _masks(module)
    packed = {}
    for name, value in module.state_dict().items():
        if name.rpartition(".")[2] == _UNUSED:
            continue
        packed[name] = (value[masks[name]] if name in masks else value).detach().contiguous().clone()
    return packed


def unpack_state(module: nn.Module, packed: Mapping[str, Tensor], source: str) -> None:
    """Loads a packed state into ``module``. Dense weights of masked convolutions are taken too.

    Args:
        module: of the network that the state is of.
        packed: what `pack_state` gave, or a plain state dictionary.
        source: what an error message calls the state.

    Raises:
        ModelError: a tensor is missing, superfluous, of the wrong shape, or holds NaN or infinity.
    """
    masks = _masks(module)
    state = module.state_dict()
    expected = {name for name in state if name.rpartition(".")[2] != _UNUSED}
    missing, extra = sorted(expected - packed.keys()), sorted(packed.keys() - state.keys())
    if missing or extra:
        problem = f"has no '{missing[0]}'" if missing else f"has '{extra[0]}', which the network lacks"
        raise ModelError(f"'{source}' does not fit {type(module).__name__}: it {problem}; give the weights of this network")
    for name in expected & packed.keys():
        value = packed[name]
        if name in masks and value.ndim == 1:
            value = _spread(value, masks[name], name, source)
        if value.shape != state[name].shape:
            raise ModelError(
                f"'{source}' does not fit {type(module).__name__}: '{name}' has shape {tuple(value.shape)}, "
                f"expected {tuple(state[name].shape)}"
            )
        check_finite(value, name, source)
        state[name].copy_(value)


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes the effective weights of a module as safetensors, atomically, replacing what is there."""
    with atomic_path(path, force=True) as temporary:
        save_file(pack_state(module), temporary, {"format": "pt"})


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a safetensors file, packed or plain, into ``module``.

    Raises:
        ModelError: the file cannot be read, does not fit the module, or holds NaN.
    """
    unpack_state(module, read_weights(path), str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}; give the path of a weights file") from error
    except SafetensorError as error:
        raise ModelError(f"'{path}' is not a safetensors file: {error}; save the weights with safetensors") from error


def check_finite(value: Tensor, name: str, source: str) -> None:
    """Raises a `ModelError` if a floating-point tensor holds NaN or infinity."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise ModelError(
            f"'{source}' holds NaN or infinity in '{name}' ({int((~torch.isfinite(value)).sum())} of {value.numel()} values); "
            "give the weights of a training run that converged"
        )


def effective_parameters(module: nn.Module) -> int:
    """Parameters that take part in the result: all, but of masked weights those inside the mask."""
    masks = _masks(module)
    return sum(
        int(torch.count_nonzero(masks[name])) if name in masks else parameter.numel()
        for name, parameter in module.named_parameters()
    )


def _masks(module: nn.Module) -> dict[str, Tensor]:
    """State name of a masked weight -> its mask, bool (N, M, Kh, Kw)."""
    return {
        f"{path}.weight" if path else "weight": child.mask.bool()
        for path, child in module.named_modules()
        if isinstance(child, MaskedConv2d)
    }


def _spread(packed: Tensor, mask: Tensor, name: str, source: str) -> Tensor:
    count = int(torch.count_nonzero(mask))
    if len(packed) != count:
        raise ModelError(
            f"'{source}' has {len(packed)} effective weights in '{name}', expected {count}; give this network's weights"
        )
    dense = torch.zeros(mask.shape, dtype=packed.dtype)
    dense[mask] = packed
    return dense
