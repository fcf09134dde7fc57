"""Gates: parts of a network that only weigh the channels they are given, however many there are.

Efficient channel attention, spatial attention and the like have weights, but none that belong to a channel: a kernel along the
channels, or over two maps. Nothing of them is cut when channels go, so the graph of channels passes through them as through an
identity. They are found by trial, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgefold.models.loaded import quiet_errors


@contextmanager
def without_gates(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """The network, in eval mode, with identities in the place of its gates for a while."""
    found = [child for child, inputs in _inputs_of(module, example_inputs).items() if _is_gate(child, inputs)]
    places = [
        (parent, key, child) for parent in list(module.modules()) for key, child in parent.named_children() if child in found
    ]
    for parent, key, _ in places:
        setattr(parent, key, nn.Identity())
    try:
        yield
    finally:
        for parent, key, child in places:
            setattr(parent, key, child)


def _inputs_of(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[nn.Module, Tensor]:
    """What each part with weights gets that takes one tensor and gives one of the same shape."""
    found: dict[nn.Module, Tensor] = {}

    def watch(child: nn.Module) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            given = inputs[0] if len(inputs) == 1 else None
            if isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape and given.ndim > 2:
                found[child] = given

        return hook

    parts = [child for child in module.modules() if child is not module and any(True for _ in child.parameters())]
    handles = [child.register_forward_hook(watch(child)) for child in parts]
    try:
        with torch.no_grad(), quiet_errors():
            module(*example_inputs)
    except Exception:  # of anyone's code: whoever reads the graph says that it does not run
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_gate(part: nn.Module, inputs: Tensor) -> bool:
    """Whether a part takes fewer channels as well, and gives zeros exactly for the channels that are zero."""
    channels = inputs.shape[1]
    fewer = torch.rand_like(inputs[:, : channels // 2]) + 0.5
    if not fewer.is_floating_point() or channels < 2:
        return False
    zeros = torch.arange(fewer.shape[1], device=fewer.device) % 3 == 1
    fewer[:, zeros] = 0
    try:
        with torch.no_grad(), quiet_errors():
            output = part(fewer)
    except Exception:  # of anyone's code: it wants its own number of channels
        return False
    if not isinstance(output, Tensor) or output.shape != fewer.shape:
        return False
    return bool((output[:, zeros] == 0).all() and (output[:, ~zeros] != 0).any())
