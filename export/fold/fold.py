"""Fold: the canonical network, in which every linear convolution, however written, is one convolution."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgefold.batch import Batch
from edgefold.errors import CheckError, ModelError, UnsupportedError, first_line
from edgefold.export.capture import as_arguments, capture, check_mode, copies_of
from edgefold.export.fold.check import random_like
from edgefold.export.fold.graph import RegionFolds, fold_regions
from edgefold.export.fold.kernel import FoldedConv
from edgefold.export.fold.modules import Decision, fold_modules
from edgefold.export.fold.progress import Report, Stages, Told
from edgefold.export.fold.record import Recorder, recorder, same
from edgefold.export.fold.report import plan_of
from edgefold.export.fold.shadow import shadow
from edgefold.export.fold.state import Snapshot
from edgefold.export.fold.watch import proof
from edgefold.export.fold.way import Way
from edgefold.export.lower.nodes import record_values
from edgefold.export.passes.infra import run_passes
from edgefold.export.passes.linear_norms import LINEAR_NORMS
from edgefold.export.plan import FoldPlan
from edgefold.export.program import Program

_BATCHES = (2, 5)  # samples that are run together; some code leaves two as they are
_LAST_BITS = 1e-6  # relative: two runs of the same ops, in memory of another alignment


@dataclass(frozen=True, slots=True)
class FoldResult:
    """The canonical network as a captured graph, and what was done to each layer."""

    program: Program
    plan: FoldPlan

    @property
    def module(self) -> GraphModule:
        """The canonical network; it returns a tuple of outputs."""
        return self.program.graph


@torch.inference_mode(False)
def fold_module(module: nn.Module, example_inputs: Batch, *, progress: Stages | None = None) -> FoldResult:
    """Folds every linear convolution of a network, in modules and in functional code, into one convolution each.

    What is not one convolution stays as it is, with the reason in the plan. The module is not changed. The result holds for
    inputs of the shapes of ``example_inputs``.

    Args:
        module: in eval mode.
        example_inputs: one minibatch, NCHW (or NCL).
        progress: told of the stages and their steps.

    Raises:
        ModelError: not a module in eval mode with finite weights, or it fails on the inputs.
        DataError: the inputs are no batch, or an (image, label) pair.
        UnsupportedError: the module cannot be captured as a graph, or it keeps changing from call to call.
        CheckError: the folded network does not give the outputs of the module.
    """
    told = Told(progress)
    check_mode(module)
    args, kwargs = as_arguments(module, example_inputs)
    told.begins("fold: record")
    tree = fold_tree(module, args, kwargs, told.counted("fold: modules"))
    if tree.lost:
        raise UnsupportedError(
            f"model {type(module).__name__} {tree.lost}, which a captured graph cannot hold: it would give the outputs of one "
            "call for ever; remove it, or give the part without it"
        )
    told.begins("fold: capture")
    with _no_collection():
        program = capture(tree.module, example_inputs)
    outputs = _outputs(program)
    if tree.outputs is not None and not same(tree.outputs, outputs):
        raise CheckError(
            f"model {type(module).__name__} gives other outputs as a captured graph; "
            "remove what it keeps between calls, random numbers and code that asks for the types of its layers"
        )
    mixes = cache(lambda: _mixes_samples(tree.module, args, kwargs))
    regions = fold_regions(program.graph, tree.unsteady, told.counted("fold: graph"), mixes)
    if not same(outputs, _outputs(program)):
        program = capture(tree.module, example_inputs)
        why = "the network gives other outputs with its functional code folded"
        regions = RegionFolds([], dict.fromkeys(program.graph.graph.nodes, why), [])
    record_values(program.graph, program.example_inputs)
    return FoldResult(_normed(program), plan_of(program.graph, list(tree.decisions), regions))


def unfolded(module: nn.Module, example_inputs: Batch) -> FoldResult:
    """The network as it is written, captured as a graph: no layer is folded, and the plan has none.

    Args:
        module: as `fold_module`.
        example_inputs: as `fold_module`.

    Raises:
        ModelError: as `fold_module`.
        DataError: as `fold_module`.
        UnsupportedError: the module cannot be captured as a graph.
    """
    check_mode(module)
    program = capture(module, example_inputs)
    record_values(program.graph, program.example_inputs)
    return FoldResult(_normed(program), FoldPlan(()))


def _normed(program: Program) -> Program:
    """The network with each BatchNorm behind a linear layer taken in."""
    graph, modified = run_passes(program.graph, (LINEAR_NORMS,))
    return replace(program, graph=graph) if modified else program


@dataclass(frozen=True, slots=True)
class FoldedTree:
    """A network whose modules are folded, before its graph is captured.

    ``outputs`` are those of the network on the example inputs, if the run used just them. ``unsteady`` names the modules
    with hidden state; all are, if the name is empty. ``lost`` says what keeps changing from call to call, so that a captured
    graph would lose it; a cache that is filled once is not such a thing.
    """

    module: nn.Module
    decisions: tuple[Decision, ...]
    outputs: Any | None
    unsteady: tuple[str, ...]
    lost: str


def fold_tree(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], report: Report = lambda done, total: None
) -> FoldedTree:
    """Folds the modules of a network and leaves its functional code as it is.

    Raises:
        ModelError: the module fails on the inputs.
    """
    root = shadow(module)
    # Compiled parts, and ops such as `torch.cond` that compile their branches, run as plain code: the proof must see each op.
    eager = torch.compiler.set_stance("force_eager")
    with eager, _no_collection(), recorder(root) as watch:
        snapshot = Snapshot(watch.modules.values())
        expected = _run(watch, module, args, kwargs)
        unsteady = tuple(watch.names[key] for key in snapshot.changed())
        if snapshot.draws_random_numbers():
            unsteady = ("",)
        lost = _lost(watch, args, kwargs) if unsteady or watch.writes else ""
        if watch.chance:
            unsteady, lost = ("",), "draws random numbers outside of PyTorch"
        layers, decisions = fold_modules(watch, snapshot, report)
        tree, reason = _tree(watch, layers, expected, args, kwargs)
        if reason:
            decisions = [_withdrawn(decision, reason) for decision in decisions]
        outputs = None if watch.feeds else expected
    return FoldedTree(tree, tuple(decisions), outputs, unsteady, lost)


def _tree(
    watch: Recorder, layers: dict[int, FoldedConv], expected: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[nn.Module, str]:
    """The network with its folded layers, or without them and the reason why.

    The layers stand in the place of the modules where the code around them goes the same way with them. Where it asks for what
    the modules are or hold, the modules stay and the layers answer their calls only.
    """
    if not layers:
        return shadow(watch.root), ""
    try:
        outputs, mark = _way(watch, args, kwargs, layers=layers)
    except Exception as error:  # anything can be raised by the code of a foreign module
        return shadow(watch.root), f"the code around it fails on the values of a folded layer: {first_line(error)}"
    if not same(expected, outputs):
        return shadow(watch.root), "the network gives other outputs with it: they hang on the last bits of its values"
    replaced = watch.replaced(layers)
    with suppress(Exception):  # code that wants what the folded layer does not have
        again, other = _way(watch, args, kwargs, root=replaced)
        if other == mark and same(outputs, again, _LAST_BITS):
            return replaced, ""
    return watch.answered(layers), ""


def _way(watch: Recorder, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], **options: Any) -> tuple[Any, bytes]:
    args, kwargs = copies_of(args, kwargs)
    try:
        with Way((*args, *kwargs.values())) as way:
            return watch.replay(args, kwargs, **options), way.mark
    finally:
        watch.writes.restore()


def _outputs(program: Program) -> Any:
    with torch.no_grad():
        return program.graph(*program.example_inputs)


def _mixes_samples(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> bool:
    """Whether the samples of a batch get other outputs than each alone; not if the code fails on several.

    ``args`` and ``kwargs`` hold one sample; the others are random.
    """

    def outputs(made: Callable[[Tensor], Tensor]) -> list[Any]:
        with proof(quick=True), torch.compiler.set_stance("force_eager"):  # gives back what is written
            return pytree.tree_leaves(module(*map(made, args), **{name: made(value) for name, value in kwargs.items()}))

    def sample(number: int, value: Tensor) -> Tensor:
        if number == 0 or not value.is_floating_point():
            return value.clone()
        return random_like(tuple(value.shape), value.dtype, seed=number)

    def batch(count: int) -> Callable[[Tensor], Tensor]:
        return lambda value: torch.cat([sample(number, value) for number in range(count)])

    try:
        alone = [outputs(partial(sample, number)) for number in range(_BATCHES[-1])]
        together = [outputs(batch(count)) for count in _BATCHES]
    except Exception:  # anything can be raised by the code of a foreign module
        return False
    if len({*map(len, alone), *map(len, together)}) > 1:
        return True
    singles = list(zip(*alone, strict=True))  # of each output
    return not all(
        _is_apart(single[:count], whole)
        for count, made in zip(_BATCHES, together, strict=True)
        for single, whole in zip(singles, made, strict=True)
    )


def _is_apart(alone: tuple[Any, ...], whole: Any) -> bool:
    """Whether one output of a batch is those of its samples, one after the other; or does not depend on them."""
    first, *others = alone
    if not isinstance(first, Tensor) or all(same(first, each) for each in (*others, whole)):
        return True
    return first.ndim > 0 and all(first.shape == other.shape for other in others) and same(torch.cat(alone), whole)


def _run(watch: Recorder, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*args, *kwargs.values()))
    try:
        return watch.record(args, kwargs)
    except Exception as error:  # anything can be raised by the code of a foreign module
        raise ModelError(
            f"model {type(module).__name__} fails on inputs of shape {shapes}: {first_line(error)}; "
            "give example inputs of the shape and type that it expects"
        ) from error


def _lost(watch: Recorder, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> str:
    """What changes in a second run too, and would be lost in a graph; empty if the first run only filled caches."""
    snapshot = Snapshot(watch.modules.values(), copies=True, caches=True)
    with proof(quick=False) as mode:  # undoes what is written
        first = watch.replay(*copies_of(args, kwargs))
        changed, written = snapshot.changed(), mode.writes.written()
        second = watch.replay(*copies_of(args, kwargs))
        again = mode.writes.written()
    if snapshot.draws_outside_of_the_graph():
        return "draws random numbers outside of PyTorch"
    for key, what in changed.items():
        name = watch.names[key]
        return f"{what} in its part '{name}'" if name else what
    if not same(written, {key: again[key] for key in written}, _LAST_BITS) or not same(first, second, _LAST_BITS):
        return "writes other values into its layers in each call"
    return ""


def _withdrawn(decision: Decision, reason: str) -> Decision:
    return decision if decision.folded is None else replace(decision, folded=None, reason=reason)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which would walk the millions of objects of a loop layer again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
