"""Pruning: networks made smaller.

* `prune_channels` removes whole channels through a dependency graph (Torch-Pruning, Fang et al., CVPR 2023), so that the exported
  model really is smaller; HetConv and group convolutions keep their structure (`edgefold.models.prune_units`).
* `edgefold.models.remove_blocks` removes whole blocks.
* `edgefold.models.magnitude` zeroes single weights, which makes no dense runtime faster.

A channel's importance is the mean vote of the layers that lose it: the sum of its squared weights there, divided by the mean of
that sum over the axis (magnitude, Li et al., ICLR 2017, over the dependency group). A unit's is the mean over its channels. The
least important units of the whole network go first, as many as the target needs, but never more than ``1 − keep`` of an axis.

What is left of an axis is a multiple of ``round_to`` channels: runtimes compute channels in blocks of 4, 8 or 16, and ONNX
Runtime leaves its blocked kernels for slow ones where the count is no multiple of 16 (AVX-512) or 8 (AVX2, NEON). Where the
target cannot be met so, or only by a jump of more than `MAX_JUMP` of the multiply-accumulates, half the step is tried, and so on.

Example:
    >>> pruned = prune_channels(model, (image,), macs_target(model, (image,), 0.5))
    >>> pruned.module, pruned.report.macs / pruned.report.macs_before
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from edgefold.errors import UsageError
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.count import count_cost
from edgefold.models.prune_graph import Axis, remove_channels
from edgefold.models.prune_trial import tried_axes

ROUND_TO: Final = 16
"""The default step of channel counts: the widest block of the three runtimes."""

MAX_JUMP: Final = 0.1
"""The share of a network's multiply-accumulates that the last step to a target may take."""

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
    """What was removed.

    ``skipped`` holds a reason for each channel axis that had to stay whole. The channel counts of pruned axes are multiples of
    ``round_to``.
    """

    macs_before: int
    macs: int
    parameters_before: int
    parameters: int
    layers: tuple[PrunedLayer, ...]
    skipped: tuple[str, ...]
    round_to: int = 1


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


def prune_channels(
    module: nn.Module, example_inputs: tuple[Tensor, ...], target: Target, *, keep: float = 0.1, round_to: int = ROUND_TO
) -> Pruned:
    """Removes the fewest units of channels with which ``target`` is met. Outputs and inputs keep their shapes.

    Args:
        module: any network of torch's layers and Edgefold's blocks.
        example_inputs: batch first.
        target: when to stop: `macs_target`, or a measurement (``lambda m: latency_ms(m) <= 3``).
        keep: the share of each channel axis that stays in any case.
        round_to: an axis keeps all its channels or a multiple of so many, as far as the target allows it (see the module); 1 for
            any count.

    Raises:
        MissingExtraError: Torch-Pruning is not installed.
        ModelError: the network cannot be traced.
        UnsupportedError: it shuffles channels.
        UsageError: ``keep`` or ``round_to`` is out of range, or the target cannot be met.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"pruning option keep is {keep}, expected a share in (0, 1]")
    if round_to < 1:
        raise UsageError(f"pruning option round_to is {round_to}, expected at least 1")
    axes, skipped = tried_axes(module, example_inputs)
    order = _order(axes, keep)
    whole = count_cost(module, example_inputs).macs
    for step in _steps(round_to):
        found = _fewest(module, example_inputs, target, order, step)
        if found is not None and (step == 1 or found[2] <= MAX_JUMP * whole):
            result, removed, _ = found
            return Pruned(result, _report(module, result, example_inputs, skipped, step), (removed,))
    raise UsageError(
        f"the pruning target cannot be met: with keep={keep} at most {len(order)} units of channels can be removed; "
        "choose a milder target or a smaller keep" + (f" ({'; '.join(skipped)})" if skipped else "")
    )


def _steps(round_to: int) -> list[int]:
    """``round_to`` and its halves, down to 1."""
    steps = [round_to]
    while steps[-1] > 1:
        steps.append(steps[-1] // 2)
    return steps


def _fewest(
    module: nn.Module, example_inputs: tuple[Tensor, ...], target: Target, order: list[tuple[Axis, int]], step: int
) -> tuple[nn.Module, Removed, int] | None:
    """The network without the fewest units of ``order`` that meets the target in steps of ``step`` channels, what went, and the
    multiply-accumulates that the last step took; ``None`` if it cannot be met."""
    ladder = _ladder(order, step)

    def pruned_by(rung: int) -> nn.Module:
        return remove_channels(module, example_inputs, ladder[rung])

    if not target(pruned_by(len(ladder) - 1)):
        return None
    low, high = 0, len(ladder) - 1  # target(high) holds
    while low < high:
        middle = (low + high) // 2
        if target(pruned_by(middle)):
            high = middle
        else:
            low = middle + 1
    result = pruned_by(high)
    macs, before = (count_cost(network, example_inputs).macs for network in (result, pruned_by(max(0, high - 1))))
    return result, ladder[high], before - macs


def prune_iteratively(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    share: float,
    rounds: int,
    fine_tune: FineTune,
    *,
    keep: float = 0.1,
    round_to: int = ROUND_TO,
) -> Pruned:
    """Prunes to ``share`` of the multiply-accumulates in ``rounds`` equal ratios; see `prune_to_cost`.

    Raises:
        UsageError: the share is not between 0 and 1, ``rounds`` is below 1, or as in `prune_channels`.
    """
    macs_target(module, example_inputs, share)  # refuses other shares

    def macs(network: nn.Module) -> float:
        return count_cost(network, example_inputs).macs

    return prune_to_cost(module, example_inputs, macs, macs(module) * share, rounds, fine_tune, keep=keep, round_to=round_to)


def prune_to_cost(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    cost: Cost,
    goal: float,
    rounds: int,
    fine_tune: FineTune,
    *,
    keep: float = 0.1,
    round_to: int = ROUND_TO,
) -> Pruned:
    """Prunes until ``cost`` is at most ``goal``, in ``rounds`` equal ratios, with ``fine_tune`` after each.

    Raises:
        UsageError: ``rounds`` is below 1, or as in `prune_channels`.
    """
    if rounds < 1:
        raise UsageError(f"pruning option rounds is {rounds}, expected at least 1")
    current = module
    skipped: tuple[str, ...] = ()
    steps = [round_to]
    removed: list[Removed] = []
    start = cost(module) if rounds > 1 else goal  # one round needs no way there
    for index in range(1, rounds + 1):
        limit = start * (goal / start) ** (index / rounds) if index < rounds else goal
        if cost(current) > limit:
            step = prune_channels(current, example_inputs, _at_most(cost, limit), keep=keep, round_to=round_to)
            current, skipped = step.module, step.report.skipped
            steps.append(step.report.round_to)
            removed += step.removed
        fine_tune(current, index)
        current.eval()
    return Pruned(current, _report(module, current, example_inputs, skipped, min(steps)), tuple(removed))


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


def _ladder(order: list[tuple[Axis, int]], step: int) -> list[Removed]:
    """What may be removed, from nothing to all, each time one step more of one axis: its root layer -> channels to remove.

    A step ends where what is left of the axis is a multiple of ``step`` channels.
    """
    ladder: list[Removed] = [{}]
    taken: dict[str, list[int]] = {}
    for axis, unit in order:
        channels = taken.setdefault(axis.root, [])
        channels.extend(axis.units[unit])
        if (axis.channels - len(channels)) % step == 0:
            ladder.append({**ladder[-1], axis.root: list(channels)})
    return ladder


def _report(
    before: nn.Module, after: nn.Module, example_inputs: tuple[Tensor, ...], skipped: tuple[str, ...], round_to: int
) -> PruneReport:
    old, new = count_cost(before, example_inputs), count_cost(after, example_inputs)
    return PruneReport(old.macs, new.macs, old.parameters, new.parameters, _layers(before, after), skipped, round_to)


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
