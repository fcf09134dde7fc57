"""Fold: the canonical network, in which every linear convolution, however written, is one convolution."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from edgefold.batch import Batch
from edgefold.errors import CheckError, ModelError
from edgefold.export.capture import as_arguments, capture, first_line
from edgefold.export.fold.graph import fold_regions
from edgefold.export.fold.modules import Decision, Progress, fold_modules
from edgefold.export.fold.record import Recorder, recorder, same
from edgefold.export.fold.report import plan_of
from edgefold.export.fold.shadow import shadow
from edgefold.export.fold.state import Snapshot
from edgefold.export.lower.nodes import record_values
from edgefold.export.plan import FoldPlan
from edgefold.export.program import Program


@dataclass(frozen=True, slots=True)
class FoldResult:
    """The canonical network as a captured graph, and what was done to each layer."""

    program: Program
    plan: FoldPlan

    @property
    def module(self) -> GraphModule:
        """The canonical network; it returns a tuple of outputs."""
        return self.program.graph


def fold_module(module: nn.Module, example_inputs: Batch, *, progress: Progress | None = None) -> FoldResult:
    """Folds every linear convolution of a network, in modules and in functional code, into one convolution each.

    What is not one convolution stays as it is, with the reason in the plan. The module is not changed, and neither the batch size nor any
    other size may be changed in the result: it holds for inputs of the shapes of ``example_inputs``.

    Args:
        module: in eval mode.
        example_inputs: one minibatch, NCHW (or NCL).
        progress: called with what is at work, the steps done and the steps in all.

    Raises:
        ModelError: not a module in eval mode with finite weights, or it fails on the inputs.
        DataError: the inputs are no batch, or an (image, label) pair.
        UnsupportedError: the module cannot be captured as a graph.
        CheckError: the folded network does not give the outputs of the module.
    """
    report = progress or _silent
    _check_mode(module)
    args, kwargs = as_arguments(module, example_inputs)
    with _no_collection():
        root, decisions = _fold_tree(module, args, kwargs, report)
    program = capture(root, example_inputs)
    expected = program.graph(*program.example_inputs)
    folds, reasons = fold_regions(program.graph, report)
    if not same(expected, program.graph(*program.example_inputs)):
        raise CheckError(f"model {type(module).__name__}: its folded graph gives other outputs; please report this model")
    record_values(program.graph, program.example_inputs)
    return FoldResult(program, plan_of(program.graph, decisions, folds, reasons))


def _fold_tree(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], report: Progress
) -> tuple[nn.Module, list[Decision]]:
    """A shadow of the module whose affine modules are folded."""
    root = shadow(module)
    with recorder(root) as watch:
        snapshot = Snapshot(watch.modules.values())
        report("recording", 0, 1)
        expected = _run(watch, module, args, kwargs)
        folded, decisions = fold_modules(watch, snapshot, report)
        watch.root = folded
        if any(decision.folded for decision in decisions) and not same(expected, watch.replay(args, kwargs)):
            # Code around a layer may ask for its class; then it takes another way with the folded one.
            return shadow(module), [_withdrawn(decision) for decision in decisions]
    return folded, decisions


def _run(watch: Recorder, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*args, *kwargs.values()))
    try:
        return watch.record(args, kwargs)
    except Exception as error:  # anything can be raised by the code of a foreign module
        raise ModelError(
            f"model {type(module).__name__} fails on inputs of shape {shapes}: {first_line(error)}; "
            "give example inputs of the shape and type that it expects"
        ) from error


def _withdrawn(decision: Decision) -> Decision:
    if decision.folded is None:
        return decision
    return replace(decision, folded=None, reason="the code around it treats a folded layer in another way")


def _check_mode(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise ModelError(f"model is a {type(module).__name__}, expected a torch.nn.Module")
    training = next((name or type(module).__name__ for name, part in module.named_modules() if part.training), None)
    if training is not None:
        raise ModelError(f"model is in train mode ('{training}'); call .eval() first")


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


def _silent(what: str, done: int, total: int) -> None:
    """No progress shown."""
