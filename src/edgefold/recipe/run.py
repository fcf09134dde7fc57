"""Runs a recipe: the network, its stages, the bundle."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgefold.batch import as_tensors
from edgefold.errors import DataError, UsageError, unknown_name
from edgefold.kept import Shelf
from edgefold.models.augment import check_padding
from edgefold.models.data import TrainingData, load_training_data
from edgefold.models.fit import as_declared, fitted
from edgefold.models.hints import Hints
from edgefold.models.loaded import refuse_fixed_graph
from edgefold.network import Evaluation, Network, Progress, Quiet, ShipOptions
from edgefold.recipe.data import with_data
from edgefold.recipe.schema import STAGES, DistillSection, PruneSection, ShipRecipe
from edgefold.recipe.stages import Training, Work, distill, needs_data, prune, start
from edgefold.schemes import scheme_of
from edgefold.shipping import named_network, ship_network

if TYPE_CHECKING:
    from torch import nn

    from edgefold.bundle.reader import Bundle

CALIBRATION_SAMPLES = 1000
_NO_TEACHER = "Not distilled: the teacher would be the network before pruning, and it was not pruned."


@dataclass(frozen=True, slots=True)
class Cooked:
    """What a recipe gave: the network after its stages, and the bundle of it."""

    work: Work
    bundle: Bundle


def run_recipe(
    recipe: ShipRecipe,
    out: Path,
    *,
    skip: Collection[str] = (),
    remeasure: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Cooked:
    """Prunes, distills, folds, quantizes, exports, verifies, measures and bundles, as the recipe says.

    Results of the stages are kept in ``OUT.stages`` beside the bundle, and used again as long as nothing changed that they
    depend on. Times are kept with the rest, with their date.

    Args:
        recipe: what `edgefold.recipe.schema.read_recipe` gave.
        out: the bundle's folder.
        skip: stages to leave out, of `edgefold.recipe.schema.STAGES`.
        remeasure: take the times anew.
        force: replace an existing bundle.
        progress: told of the stages.

    Raises:
        UsageError: ``skip`` names no stage, or leaves no precision.
        InputError: see the stages and `edgefold.shipping.ship_network`.
    """
    from edgefold.bundle.writer import check_output

    check_output(out, force=force)
    progress = progress or Quiet()
    left_out = _skipped(recipe, skip)
    options = _ship_options(recipe, left_out, force=force)
    folder = out.with_name(f"{out.name}.stages")
    work = run_stages(recipe, folder, skip=skip, progress=progress)
    shelf = Shelf(folder, work.state, frozenset({"measure"} if remeasure else ()))
    return Cooked(work, ship_network(work.network, out, options, progress, shelf))


def _skipped(recipe: ShipRecipe, skip: Collection[str]) -> frozenset[str]:
    """The stages that are left out by the caller or the recipe.

    Raises:
        UsageError: one is no stage.
    """
    for name in skip:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    sections = {"prune": recipe.prune, "distill": recipe.distill}
    missing = {name for name, section in sections.items() if section is None or section.skip}
    return frozenset((*skip, *recipe.ship.skip, *missing))


def _ship_options(recipe: ShipRecipe, left_out: frozenset[str], *, force: bool) -> ShipOptions:
    """How the recipe's network is shipped.

    Raises:
        UsageError: without quantization no precision is left.
    """
    from edgefold.device_bench import BenchOptions

    ship = recipe.ship
    precisions = ship.precisions
    if "quantize" in left_out:
        precisions = tuple(precision for precision in precisions if not scheme_of(precision).rounded)
        if not precisions:
            wanted = ", ".join(ship.precisions)
            raise UsageError(
                f"without quantization nothing is left of the precisions {wanted}; add fp32, or do not skip quantize"
            )
    return ShipOptions(
        formats=ship.formats,
        precisions=precisions,
        device=ship.device or "host",
        native=ship.device is not None and not ship.portable,
        lowering=ship.lowering,
        max_drop=ship.max_drop,
        bench=BenchOptions(threads=ship.threads, max_secs=ship.max_secs),
        force=force,
        timing=ship.timing,
        observer=ship.observer,
        equalize=ship.equalize,
        exclude=ship.exclude,
        agree=ship.agree,
        io=ship.io,
        layout=ship.layout,
        dynamic_batch=ship.dynamic_batch,
        max_batch=ship.max_batch,
        portable=ship.portable,
        max_size_bytes=ship.max_size,
        fold="fold" not in left_out,
        measure="measure" not in left_out,
    )


def run_stages(recipe: ShipRecipe, folder: Path, *, skip: Collection[str] = (), progress: Progress | None = None) -> Work:
    """The network of a recipe after pruning and distillation, each result kept in ``folder``.

    Raises:
        UsageError: ``skip`` names no stage.
        InputError: see the stages.
    """
    left_out = _skipped(recipe, skip)
    progress = progress or Quiet()
    model = recipe.model
    network = named_network(
        model.name, kwargs=model.kwargs, weights=None if model.weights is None else Path(model.weights), trust=model.trust
    )
    started = start(network, model.name, model.kwargs)
    network = with_data(network, recipe.ship.calibration, recipe.ship.evaluation)
    pruning = None if "prune" in left_out else recipe.prune
    distilling = None if "distill" in left_out else recipe.distill
    if distilling is not None and distilling.teacher is None and pruning is None:
        if recipe.prune is None:
            raise UsageError(
                'the recipe distills a network that was not pruned from itself; name a teacher, as in teacher = "hetnet-fmnist"'
            )
        distilling = None  # the teacher is the network before pruning, and that is what there is
        network = replace(network, notes=(*network.notes, _NO_TEACHER))
    for stage, purpose in ((pruning, "pruned"), (distilling, "distilled")):
        if stage is not None:
            refuse_fixed_graph(network.module, model.name, purpose)
    teacher = network if distilling is None else _teacher(distilling, network, trust=model.trust)
    training = Training(None, recipe.train)
    trains = distilling is not None or (pruning is not None and needs_data(pruning))
    if trains or _calibrates_with_it(recipe, network, left_out):
        progress.stage("load data")
        try:
            data = load_training_data(recipe.data.source, image_size=recipe.data.image_size)
            training = Training(training_data(network, data, model.name), recipe.train)
            if trains:
                _check_padding(training)
        except (DataError, UsageError) as error:
            raise type(error)(f"{error}{_without_data(pruning)}" if distilling is None else str(error)) from error
    network = _with_training_data(network, training.data)
    work = first = replace(started, network=network)
    if pruning is not None:
        progress.stage("prune")
        work = prune(work, pruning, training, folder)
    if distilling is not None:
        progress.stage("distill")
        with _frozen(teacher.module):
            work = distill(work, teacher, distilling, training, folder)
    if work is first:
        return work
    described = replace(work.network, description=f"made from {model.name}", notes=(*work.network.notes, *work.history))
    return replace(work, network=described)


def _teacher(distilling: DistillSection, network: Network, *, trust: bool) -> Network:
    """The teacher; hints that name no layers are refused here, before the stages.

    Raises:
        InputError: see there and `edgefold.shipping.named_network`.
    """
    teacher = network
    if distilling.teacher is not None:
        weights = None if distilling.teacher_weights is None else Path(distilling.teacher_weights)
        teacher = named_network(distilling.teacher, kwargs=distilling.teacher_kwargs, weights=weights, trust=trust)
    Hints(network.module, teacher.module, distilling.hint_pairs())
    return teacher


def _check_padding(training: Training) -> None:
    """Refuses to move pictures by more than their size, before the stages."""
    if training.data is not None and training.data.train.pictures:
        check_padding(training.for_epochs(1).crop_padding, training.data.train.images)


def _calibrates_with_it(recipe: ShipRecipe, network: Network, left_out: frozenset[str]) -> bool:
    """Whether the data of the recipe is needed for integers, since the network brings none."""
    integers = "quantize" not in left_out and any(scheme_of(precision).calibrated for precision in recipe.ship.precisions)
    return recipe.data.source is not None and integers and network.calibration is None


@contextmanager
def _frozen(teacher: nn.Module) -> Iterator[None]:
    """A teacher whose parameters take no gradients for a while."""
    was = [(parameter, parameter.requires_grad) for parameter in teacher.parameters()]
    for parameter, _ in was:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in was:
            parameter.requires_grad_(wanted)


def training_data(network: Network, data: TrainingData, name: str) -> TrainingData:
    """The data as the network takes it: normalised as it declares, in its shape.

    Raises:
        InputError: the two do not go together; see `edgefold.models.fit.as_declared` and `edgefold.models.fit.fitted`.
    """
    return fitted(as_declared(data, network.preprocessing), network.module, as_tensors(network.example_inputs), name)


def _without_data(pruning: PruneSection | None) -> str:
    """The end of a sentence about data that do not go with the network: how it is pruned without any."""
    if pruning is None or not needs_data(pruning):
        return ""
    if pruning.blocks is not None:
        return ". Blocks are judged on labelled samples; channels and single weights are not: they need no data with epochs 0"
    return ". To prune without training, which needs no data, give epochs 0"


def _scores(network: Network, data: TrainingData) -> int:
    """How many scores a network gives to a sample that fits it."""
    import torch

    with torch.no_grad():
        return int(network.module(data.train.normalised(0, 1)).shape[1])


def _with_training_data(network: Network, data: TrainingData | None) -> Network:
    """The network with calibration and evaluation data and names of classes of the training data, where it has none itself."""
    if data is None:
        return network
    numbers = tuple(str(number) for number in range(len(data.train.classes)))
    if not network.labels and data.train.classes != numbers and _scores(network, data) == len(data.train.classes):
        network = replace(network, labels=data.train.classes)
    if network.calibration is None:
        network = replace(
            network,
            calibration=data.train.normalised(0, CALIBRATION_SAMPLES),
            calibration_source=f"{data.name} (training {data.train.noun})",
        )
    if network.evaluation is None:
        what = f"{len(data.test):,} test {data.test.noun} of {data.name}"
        network = replace(network, evaluation=Evaluation((data.test.normalised(),), data.test.labels.numpy(), what))
    return network
