"""The channel axes of a network and the removal of channels, by Torch-Pruning's dependency graph (Fang et al., CVPR 2023)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgefold.errors import MissingExtraError, ModelError, UnsupportedError, first_line
from edgefold.models.blocks.hetconv import HetConv2d, hetconv_mask
from edgefold.models.blocks.locally_connected import LocallyConnected2d
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.loaded import quiet_errors, refuse_fixed_graph
from edgefold.models.prune_gates import without_gates
from edgefold.models.prune_units import Touch, partition

if TYPE_CHECKING:
    from torch_pruning import DependencyGraph


_RESHAPES = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default)


@dataclass(frozen=True, slots=True)
class Axis:
    """One channel axis: the layer whose outputs it is, their number, its units, and their importance (mean 1 over the axis)."""

    root: str
    channels: int
    units: tuple[tuple[int, ...], ...]
    importance: tuple[float, ...]


class MaskedPruner:
    """How Torch-Pruning cuts a masked convolution: the mask is cut with the weight."""

    pruning_dim = 1  # set by Torch-Pruning

    def prune_out_channels(self, layer: MaskedConv2d, channels: Sequence[int]) -> MaskedConv2d:
        """Removes filters."""
        self._cut(layer, 0, layer.out_channels, channels)
        layer.out_channels -= len(channels)
        return layer

    def prune_in_channels(self, layer: MaskedConv2d, channels: Sequence[int]) -> MaskedConv2d:
        """Removes inputs of all filters."""
        self._cut(layer, 1, layer.in_channels, channels)
        layer.in_channels -= len(channels)
        return layer

    @staticmethod
    def _cut(layer: MaskedConv2d, dimension: int, count: int, channels: Sequence[int]) -> None:
        gone = set(channels)
        kept = torch.tensor([channel for channel in range(count) if channel not in gone])
        layer.weight = nn.Parameter(layer.weight.detach().index_select(dimension, kept))
        layer.mask = layer.mask.index_select(dimension, kept)
        if dimension == 0 and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[kept])

    def get_out_channels(self, layer: MaskedConv2d) -> int:
        """N."""
        return layer.out_channels

    def get_in_channels(self, layer: MaskedConv2d) -> int:
        """M."""
        return layer.in_channels

    def get_out_channel_groups(self, layer: MaskedConv2d) -> int:
        """One: the structure is kept by the choice of units."""
        return 1

    get_in_channel_groups = get_out_channel_groups


def channel_axes(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """The axes from which units may be removed, and a reason for each that must stay whole.

    Raises:
        MissingExtraError: Torch-Pruning is not installed.
        ModelError: the network cannot be traced.
        UnsupportedError: it shuffles channels, or is an exported program.
    """
    refuse_fixed_graph(module, type(module).__name__, "pruned")
    traced = copy.deepcopy(module).eval()
    with without_gates(traced, example_inputs):
        return _axes(traced, _graph(traced, example_inputs))


def _axes(traced: nn.Module, graph: DependencyGraph) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """See `channel_axes`."""
    from torch_pruning import ops

    names = {child: name for name, child in traced.named_modules()}
    axes: list[Axis] = []
    skipped: list[str] = []
    for group in graph.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear, MaskedConv2d]):
        if _reaches_the_output(graph, group):
            continue
        root = group[0].dep.target.module
        if any(item.dep.target.type is ops.OPTYPE.SPLIT for item in group):  # its parts would have to shrink alike
            skipped.append(f"the axis of '{names[root]}' is split into parts, whose sizes are the code's own")
            continue
        channels = graph.get_out_channels(root)
        parameters = [item.dep.target.name for item in group if isinstance(item.dep.target.module, nn.Parameter)]
        touches = _touches(graph, group, names, channels)
        locals_ = [touch.name for touch in touches if isinstance(touch.layer, LocallyConnected2d)]
        if parameters or locals_:
            culprit = parameters[0] if parameters else locals_[0]
            skipped.append(f"the axis of '{names[root]}' meets '{culprit}', of which the channels are not known")
            continue
        stray = next((touch.name for touch in touches if _places_outside(touch)), None)
        if stray is not None:
            skipped.append(f"the axis of '{names[root]}' meets '{stray}', which does not take it as its channels")
            continue
        units, reason = partition(channels, touches)
        if reason:
            skipped.append(reason)
        else:
            scores = _importance(touches, channels)
            axes.append(Axis(names[root], channels, units, tuple(float(scores[list(unit)].mean()) for unit in units)))
    return tuple(axes), tuple(skipped)


def remove_channels(module: nn.Module, example_inputs: tuple[Tensor, ...], channels: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of ``module``, in eval mode, without the given output channels of the named layers and all that hangs on them.

    Raises:
        ModelError: what is left does not run, or gives outputs of another shape.
    """
    pruned = copy.deepcopy(module).eval()
    if channels:
        with without_gates(pruned, example_inputs):
            graph = _graph(pruned, example_inputs)
            layers = dict(pruned.named_modules())
            for name, indices in channels.items():
                layer = layers[name]
                function = graph.get_pruner_of_module(layer).prune_out_channels
                graph.get_pruning_group(layer, function, sorted(indices)).prune()
    for layer in pruned.modules():
        if isinstance(layer, HetConv2d):
            wanted = hetconv_mask(layer.in_channels, layer.out_channels, layer.kernel_size, layer.p)
            assert torch.equal(layer.mask.bool(), wanted), "the units keep the pattern of a HetConv"
    _check_outputs(module, pruned, example_inputs)
    return pruned


class _RefuseShuffles(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Stops where an image's channels are split into groups: Torch-Pruning would follow a channel shuffle for ever."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _RESHAPES and args[0].ndim == 4 and output.ndim == 5:
            raise UnsupportedError(
                f"channels are split into groups ({tuple(args[0].shape)} -> {tuple(output.shape)}), as a channel shuffle does, "
                "and the head of some detectors, which pruning of channels cannot follow; choose a network without, or remove "
                "blocks (--blocks) or single weights (--sparsity)"
            )
        return output


def _graph(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> DependencyGraph:
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtraError("torch-pruning", "prune", "removing channels") from error
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the graph is read from autograd
    pruner = MaskedPruner()
    kinds = {type(child) for child in module.modules() if isinstance(child, MaskedConv2d | LocallyConnected2d)}
    try:
        with _RefuseShuffles(), torch.no_grad():  # type: ignore[no-untyped-call]  # likewise
            module(*example_inputs)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on bare parameters: those axes are skipped, with a reason
            return torch_pruning.DependencyGraph().build_dependency(
                module, example_inputs=example_inputs, customized_pruners=dict.fromkeys(kinds, pruner), verbose=False
            )
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
        raise ModelError(
            f"{type(module).__name__} cannot be traced for pruning: {error}; give a module that runs on its example inputs "
            "and is made of PyTorch layers"
        ) from error


def _reaches_the_output(graph: DependencyGraph, group: Any) -> bool:
    return any(not item.dep.target.outputs and graph.is_out_channel_pruning_fn(item.dep.handler) for item in group)


def _touches(graph: DependencyGraph, group: Any, names: Mapping[nn.Module, str], channels: int) -> list[Touch]:
    touches = []
    for item in group:
        layer = item.dep.target.module
        if layer not in names:
            continue  # an operation such as an addition
        places: list[list[int]] = [[] for _ in range(channels)]
        for place, root in zip(item.idxs, item.root_idxs, strict=True):
            places[root].append(place)
        output_side = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        touches.append(Touch(names[layer], layer, output_side, tuple(tuple(found) for found in places)))
    return touches


def _places_outside(touch: Touch) -> bool:
    """Whether a layer has fewer channels than the axis would need, such as a convolution along the channels."""
    layer = touch.layer
    if isinstance(layer, nn.modules.conv._ConvNd):
        size = layer.out_channels if touch.output_side else layer.in_channels
    elif isinstance(layer, nn.Linear):
        size = layer.out_features if touch.output_side else layer.in_features
    else:
        return False
    return max((place for places in touch.places for place in places), default=-1) >= size


def _importance(touches: Iterable[Touch], channels: int) -> Tensor:
    """float64 (channels,), mean 1. Each layer has one vote: its squared weights of a channel over their mean."""
    votes = torch.zeros(channels, dtype=torch.float64)
    count = 0
    for touch in touches:
        squares = _squares(touch)
        if squares is None:
            continue
        vote = torch.stack([squares[list(places)].sum() for places in touch.places])
        if vote.sum() > 0:
            votes += vote / vote.mean()
            count += 1
    return votes / max(count, 1)


def _squares(touch: Touch) -> Tensor | None:
    """The sum of squared weights for each channel of one side of a layer, float64; ``None`` if it has no weights that tell."""
    layer = touch.layer
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
        return layer.weight.detach().double().square()
    if isinstance(layer, MaskedConv2d):
        weight, groups = layer.dense_weight().detach(), 1
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        weight, groups = layer.weight.detach(), layer.groups
    elif isinstance(layer, nn.Linear):
        weight, groups = layer.weight.detach(), 1
    else:
        return None
    squares: Tensor = weight.double().square().flatten(1).view(*weight.shape[:2], -1).sum(2)  # (N, M/G)
    if touch.output_side:
        return squares.sum(1)
    return squares.view(groups, -1, squares.shape[1]).sum(1).flatten()  # (G, M/G) -> (M,)


def _check_outputs(before: nn.Module, after: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    mode = before.training
    try:
        with torch.no_grad(), quiet_errors():
            shapes = [_shapes(network.eval()(*example_inputs)) for network in (before, after)]
    except Exception as error:  # of anyone's code
        raise ModelError(
            f"{type(before).__name__} does not run after channels were removed: {first_line(error)}; it cannot be pruned"
        ) from error
    finally:
        before.train(mode)
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"{type(before).__name__} changes its outputs from {shapes[0]} to {shapes[1]} when pruned; it cannot be pruned"
        )


def _shapes(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: _shapes(value) for key, value in output.items()}
    return [_shapes(value) for value in output]
