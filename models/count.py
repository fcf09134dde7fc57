"""What a network costs: multiply-accumulates and parameters, layer by layer, the effective ones of masked convolutions.

Counted while one example runs, so that sizes are real ones. A multiply-accumulate is one multiplication of a weight with an
input; norms, activations, pooling and gates are not counted, as in the papers, which call this number FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgefold.errors import EdgefoldError, ModelError, first_line
from edgefold.models.blocks.locally_connected import LocallyConnected2d
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.loaded import quiet_errors
from edgefold.models.packing import effective_parameters


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer; both numbers are for one sample."""

    name: str
    kind: str
    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole network. ``layers`` are those that multiply, in the order in which they ran; a shared layer is there once a use."""

    macs: int
    parameters: int
    layers: tuple[LayerCost, ...]


def count_cost(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Cost:
    """The cost of one sample; the batch size of the inputs is divided out.

    Args:
        module: any module; its mode and its state do not change.
        example_inputs: batch first.

    Raises:
        ModelError: the module does not run on its example inputs.
    """
    layers: list[LayerCost] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            layers.append(LayerCost(name, type(layer).__name__, _macs(layer, output), effective_parameters(layer)))

        return hook

    counted = (nn.modules.conv._ConvNd, nn.Linear, MaskedConv2d, LocallyConnected2d)
    handles = [child.register_forward_hook(watch(name)) for name, child in module.named_modules() if isinstance(child, counted)]
    modes = {child: child.training for child in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), quiet_errors():
            module(*example_inputs)
    except EdgefoldError:
        raise
    except Exception as error:  # of anyone's code
        shapes = ", ".join(str(tuple(value.shape)) for value in example_inputs)
        raise ModelError(
            f"{type(module).__name__} does not run on its example inputs of shape {shapes}: {first_line(error)}; "
            "give example inputs of the number, shape and type that it expects"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for child, training in modes.items():
            child.training = training
    return Cost(sum(layer.macs for layer in layers), effective_parameters(module), tuple(layers))


def _macs(layer: nn.Module, output: Tensor) -> int:
    """Weights that each output value meets, times the output values of one sample."""
    if isinstance(layer, MaskedConv2d):
        return layer.effective_macs((output.shape[2], output.shape[3]))
    if isinstance(layer, LocallyConnected2d):
        return layer.weight.numel()
    values = output.numel() // len(output)
    if isinstance(layer, nn.Linear):
        return values * layer.in_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    if layer.transposed:  # each input value meets the weights of its group
        return values * layer.in_channels // layer.groups * math.prod(layer.kernel_size) // math.prod(layer.stride)
    return values * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
