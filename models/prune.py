"""Pruning: networks made smaller.

* `prune_channels` removes whole channels through a dependency graph (Torch-Pruning, Fang et al., CVPR 2023), so that the exported
  model really is smaller; HetConv and group convolutions keep their structure (`edgefold.models.prune_units`).
* `edgefold.models.remove_blocks` removes whole blocks.
* `edgefold.models.magnitude` zeroes single weights, which makes no dense runtime faster.

A channel's importance is the mean vote of the layers that lose it: the sum of its squared weights there, divided by the mean of
that sum over the axis (magnitude, Li et al., ICLR 2017, over the dependency group). A unit's is the mean over its channels. The
least important units of the whole network go first, as many as the target needs, but never more than ``1 − keep`` of an axis.

Example:
    >>> pruned = prune_channels(model, (image,), macs_target(model, (image,), 0.5))
    >>> pruned.module, pruned.report.macs / pruned.report.macs_before
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.count import count_cost
from edgefold.models.prune_graph import Axis, channel_axes, remove_channels

Removed = dict[str, list[int]]
"""Layer -> its output channels that went, in the numbering before the round."""

Target = Callable[[nn.Module], bool]
"""Whether a pruned module is small or fast enough. Removing more must not make it false again."""

Cost = Callable[[nn.Module], float]
"""What a module costs, such as its multiply-accumulates or its measured time. Removing more must not make it higher."""

FineTune = Callable[[nn.Module, int], None]
"""Trains a pruned module in place; called with the number of the round, from 1."""


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """The channels of one layer before and after."""

    name: str
    in_before: int
    out_before: int
    in_after: int
    out_after: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed. ``skipped`` holds a reason for each channel axis that had to stay whole."""

    macs_before: int
    macs: int
    parameters_before: int
    parameters: int
    layers: tuple[PrunedLayer, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """A smaller network, in eval mode; the one that it was made of is unchanged.

    ``removed`` holds, for each round, the output channels that went, by layer: with it
    `edgefold.models.prune_graph.remove_channels` makes the structure again.
    """

    module: nn.Module
    report: PruneReport
    removed: tuple[Removed, ...] = ()


def macs_target(module: nn.Module, example_inputs: tuple[Tensor, ...], share: float) -> Target:
    """A target of at most ``share`` of the module's multiply-accumulates.

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"pruning target is {share} of the multiply-accumulates, expected a share between 0 and 1")
    limit = count_cost(module, example_inputs).macs * share
    return lambda pruned: count_cost(pruned, example_inputs).macs <= limit


def prune_channels(module: nn.Module, example_inputs: tuple[Tensor, ...], target: Target, *, keep: float = 0.1) -> Pruned:
    """Removes the fewest units of channels with which ``target`` is met. Outputs and inputs keep their shapes.

    Args:
        module: any network of torch's layers and Edgefold's blocks.
        example_inputs: batch first.
        target: when to stop: `macs_target`, or a measurement (``lambda m: latency_ms(m) <= 3``).
        keep: the share of each channel axis that stays in any case.

    Raises:
        MissingExtraError: Torch-Pruning is not installed.
        ModelError: the network cannot be traced.
        UnsupportedError: it shuffles channels.
        UsageError: ``keep`` is out of range, or the target cannot be met.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"pruning option keep is {keep}, expected a share in (0, 1]")
    axes, skipped = channel_axes(module, example_inputs)
    order = _order(axes, keep)

    def pruned_by(count: int) -> nn.Module:
        return remove_channels(module, example_inputs, _chosen(order[:count]))

    if not target(pruned_by(len(order))):
        raise UsageError(
            f"the pruning target cannot be met: with keep={keep} at most {len(order)} units of channels can be removed; "
            "choose a milder target or a smaller keep" + (f" ({'; '.join(skipped)})" if skipped else "")
        )
    low, high = 0, len(order)  # target(high) holds
    while low < high:
        middle = (low + high) // 2
        if target(pruned_by(middle)):
            high = middle
        else:
            low = middle + 1
    result = pruned_by(high)
    return Pruned(result, _report(module, result, example_inputs, skipped), (_chosen(order[:high]),))


def prune_iteratively(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    share: float,
    rounds: int,
    fine_tune: FineTune,
    *,
    keep: float = 0.1,
) -> Pruned:
    """Prunes to ``share`` of the multiply-accumulates in ``rounds`` equal ratios; see `prune_to_cost`.

    Raises:
        UsageError: the share is not between 0 and 1, ``rounds`` is below 1, or as in `prune_channels`.
    """
    macs_target(module, example_inputs, share)  # refuses other shares

    def macs(network: nn.Module) -> float:
        return count_cost(network, example_inputs).macs

    return prune_to_cost(module, example_inputs, macs, macs(module) * share, rounds, fine_tune, keep=keep)


def prune_to_cost(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    cost: Cost,
    goal: float,
    rounds: int,
    fine_tune: FineTune,
    *,
    keep: float = 0.1,
) -> Pruned:
    """Prunes until ``cost`` is at most ``goal``, in ``rounds`` equal ratios, with ``fine_tune`` after each.

    Raises:
        UsageError: ``rounds`` is below 1, or as in `prune_channels`.
    """
    if rounds < 1:
        raise UsageError(f"pruning option rounds is {rounds}, expected at least 1")
    current = module
    skipped: tuple[str, ...] = ()
    removed: list[Removed] = []
    start = cost(module) if rounds > 1 else goal  # one round needs no way there
    for index in range(1, rounds + 1):
        limit = start * (goal / start) ** (index / rounds) if index < rounds else goal
        if cost(current) > limit:
            step = prune_channels(current, example_inputs, _at_most(cost, limit), keep=keep)
            current, skipped = step.module, step.report.skipped
            removed += step.removed
        fine_tune(current, index)
        current.eval()
    return Pruned(current, _report(module, current, example_inputs, skipped), tuple(removed))


def _at_most(cost: Cost, limit: float) -> Target:
    return lambda pruned: cost(pruned) <= limit


def _order(axes: tuple[Axis, ...], keep: float) -> list[tuple[Axis, int]]:
    """(axis, unit) pairs that may go, the least important first."""
    candidates: list[tuple[float, int, int, Axis]] = []
    for index, axis in enumerate(axes):
        ranked = sorted(range(len(axis.units)), key=axis.importance.__getitem__)
        removable = len(ranked) - max(1, math.ceil(keep * len(ranked)))
        candidates += [(axis.importance[unit], index, unit, axis) for unit in ranked[:removable]]
    candidates.sort(key=lambda candidate: candidate[:3])
    return [(axis, unit) for _, _, unit, axis in candidates]


def _chosen(pairs: list[tuple[Axis, int]]) -> Removed:
    """Root layer of each axis -> channels to remove."""
    chosen: Removed = {}
    for axis, unit in pairs:
        chosen.setdefault(axis.root, []).extend(axis.units[unit])
    return chosen


def _report(before: nn.Module, after: nn.Module, example_inputs: tuple[Tensor, ...], skipped: tuple[str, ...]) -> PruneReport:
    old, new = count_cost(before, example_inputs), count_cost(after, example_inputs)
    return PruneReport(old.macs, new.macs, old.parameters, new.parameters, _layers(before, after), skipped)


def _layers(before: nn.Module, after: nn.Module) -> tuple[PrunedLayer, ...]:
    rows = []
    smaller = dict(after.named_modules())
    for name, layer in before.named_modules():
        old, new = _channels(layer), _channels(smaller[name])
        if old is not None and new is not None and old != new:
            rows.append(PrunedLayer(name, *old, *new))
    return tuple(rows)


def _channels(layer: nn.Module) -> tuple[int, int] | None:
    if isinstance(layer, nn.modules.conv._ConvNd | MaskedConv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return None
