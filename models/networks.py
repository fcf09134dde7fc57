"""The built-in networks by name. Each is imported when it is made; a new one is a file in ``nets`` and a line here.

Every network is a function ``f(num_classes=10, in_channels=1, width=…, resolution=28, …)`` whose module has an attribute
``input_size`` (C, H, W).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from edgefold.errors import UsageError, first_line, unknown_name
from edgefold.models.data import TrainingData


@dataclass(frozen=True, slots=True)
class Network:
    """Where the function of a network is, and what it makes."""

    target: str  # "package.module:function"
    summary: str


NETWORKS: Final[dict[str, Network]] = {
    "dualnet": Network("edgefold.models.nets.dualnet:dualnet", "residual network of DualConv, BatchNorm and ReLU"),
    "groupnet": Network("edgefold.models.nets.groupnet:groupnet", "two group convolutions and a classifier"),
    "hetnet": Network("edgefold.models.nets.hetnet:hetnet", "residual network of HetConv, BatchNorm and ReLU"),
    "mobilenet_v1": Network("edgefold.models.nets.mobilenet_v1:mobilenet_v1", "depthwise separable convolutions"),
    "mobilenet_v2": Network("edgefold.models.nets.mobilenet_v2:mobilenet_v2", "inverted residuals with ReLU6"),
    "mobilenet_v3": Network("edgefold.models.nets.mobilenet_v3:mobilenet_v3", "inverted residuals with hard-swish and attention"),
    "resnet20": Network("edgefold.models.nets.residual:resnet20", "ResNet-20 with any convolution"),
    "resnet56": Network("edgefold.models.nets.residual:resnet56", "ResNet-56 with any convolution"),
    "resnet_small": Network("edgefold.models.nets.residual:resnet_small", "the residual network of hetnet with any convolution"),
    "shufflenet_v2": Network("edgefold.models.nets.shufflenet_v2:shufflenet_v2", "channel split and shuffle"),
    "vgg16": Network("edgefold.models.nets.vgg:vgg16", "VGG-16 with any convolution"),
}


def network_function(name: str) -> Callable[..., nn.Module]:
    """The function that makes the network ``name``.

    Raises:
        UsageError: there is no such network.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    module, _, function = NETWORKS[name].target.partition(":")
    made: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
    return made


def fitting_arguments(name: str, given: Mapping[str, Any], data: TrainingData) -> dict[str, Any]:
    """The given arguments, with the number of classes, the channels and the resolution of the data where they are not given.

    What is the network's default is left out.

    Raises:
        UsageError: there is no such network.
    """
    known = inspect.signature(network_function(name)).parameters
    _, channels, height, width = data.train.images.shape
    wanted = {"num_classes": len(data.train.classes), "in_channels": channels, "resolution": max(height, width)}
    missing = {key: value for key, value in wanted.items() if key in known and key not in given and known[key].default != value}
    return {**given, **missing}


def build_network(name: str, **kwargs: Any) -> nn.Module:
    """The network ``name``, with random weights, in train mode.

    Raises:
        UsageError: there is no such network, or it has no such argument, or a value is out of range.
    """
    function = network_function(name)
    known = inspect.signature(function).parameters
    for key in kwargs:
        if key not in known:
            raise unknown_name(f"argument of {name}", key, known)
    try:
        return function(**kwargs)
    except (TypeError, OverflowError, RuntimeError) as error:  # the latter two of sizes that no machine holds
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UsageError(f"network '{name}' cannot be made with {given}: {first_line(error)}") from error
