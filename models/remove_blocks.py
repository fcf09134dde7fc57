"""Removal of whole blocks by importance: the blocks whose loss costs the least accuracy go.

A block can go if it is a child of a `torch.nn.Sequential`, has weights, and gives outputs of its input's shape: then an identity
can stand in its place. Residual blocks without a change of shape are of this kind, and their skip connection makes their removal
mild (Veit et al., NeurIPS 2016).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgefold.errors import UsageError

Evaluate = Callable[[nn.Module], float]
"""The quality of a network: the higher the better, for example top-1 accuracy on some images."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One removed block and the quality without it (and without those removed before)."""

    name: str
    quality: float


@dataclass(frozen=True, slots=True)
class RemovedBlock:
    """A block in whose place an identity stands, by its module path."""

    block: str


@dataclass(frozen=True, slots=True)
class Shortened:
    """A network without some blocks, in eval mode; the one that it was made of is unchanged."""

    module: nn.Module
    quality_before: float
    removals: tuple[Removal, ...]


def removable_blocks(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The names of the blocks in whose place an identity can stand, in order."""
    candidates = {
        f"{path}.{key}" if path else key: child
        for path, parent in module.named_modules()
        if isinstance(parent, nn.Sequential)
        for key, child in parent.named_children()
        if len(list(child.children())) > 1 and any(True for _ in child.parameters())
    }
    keeps: dict[str, bool] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            same = (
                len(inputs) == 1
                and isinstance(inputs[0], Tensor)
                and isinstance(output, Tensor)
                and inputs[0].shape == output.shape
            )
            keeps[name] = keeps.get(name, True) and same

        return hook

    handles = [child.register_forward_hook(watch(name)) for name, child in candidates.items()]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
        module.train(training)
    found = [name for name in candidates if keeps.get(name, False)]
    # A block inside a removable block is part of it.
    return tuple(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def remove_blocks(module: nn.Module, example_inputs: tuple[Tensor, ...], evaluate: Evaluate, count: int) -> Shortened:
    """Removes ``count`` blocks, one after the other, each time the one without which ``evaluate`` is highest.

    Args:
        module: any network.
        example_inputs: batch first.
        evaluate: called with a network in eval mode; ``count`` times the number of removable blocks in all.
        count: how many blocks to remove.

    Raises:
        UsageError: there are not so many removable blocks.
    """
    names = list(removable_blocks(module, example_inputs))
    _check_count(module, names, count)
    current = copy.deepcopy(module).eval()
    before = evaluate(current)
    removals: list[Removal] = []
    for _ in range(count):
        trials = [(evaluate(without_block(current, name)), name) for name in names]
        quality, name = max(trials, key=lambda trial: trial[0])  # the first of equals
        current = without_block(current, name)
        names.remove(name)
        removals.append(Removal(name, quality))
    return Shortened(current, before, tuple(removals))


def remove_blocks_in_rounds(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    evaluate: Evaluate,
    count: int,
    rounds: int,
    fine_tune: Callable[[nn.Module, int], None],
) -> Shortened:
    """As `remove_blocks`, about as many in each round, with ``fine_tune(module, round)`` after each, from 1.

    Raises:
        UsageError: there are fewer removable blocks than ``count``, or fewer than one for each round.
    """
    if not 1 <= rounds <= count:
        raise UsageError(f"{count} blocks are to be removed in {rounds} rounds, expected 1 to {count} rounds")
    _check_count(module, removable_blocks(module, example_inputs), count)  # before the first round's training
    current, before = module, 0.0
    removals: tuple[Removal, ...] = ()
    for index in range(1, rounds + 1):
        step = remove_blocks(current, example_inputs, evaluate, count * index // rounds - len(removals))
        before = step.quality_before if index == 1 else before
        removals += step.removals
        current = step.module
        fine_tune(current, index)
        current.eval()
    return Shortened(current, before, removals)


def _check_count(module: nn.Module, names: Sequence[str], count: int) -> None:
    if not 1 <= count <= len(names):
        raise UsageError(
            f"{count} blocks are to be removed, but {type(module).__name__} has {len(names)} removable ones: {list(names)}"
        )


def without_block(module: nn.Module, name: str) -> nn.Module:
    """A copy of the module in eval mode with an identity in the place of a block."""
    shorter = copy.deepcopy(module)
    parent, _, child = name.rpartition(".")
    setattr(shorter.get_submodule(parent), child, nn.Identity())
    return shorter.eval()
