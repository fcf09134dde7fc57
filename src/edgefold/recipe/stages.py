"""The stages of a recipe before shipping: pruning and distillation, each a function from one network to another.

A stage keeps its result in a folder of its own, named after a hash of all that it depends on, and takes it from there when it is
asked again. Inside a stage, training goes on from its last epoch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefold.batch import as_tensors
from edgefold.errors import ArtifactError, UsageError
from edgefold.models.data import TrainingData
from edgefold.models.derived import RECORD_NAME, read_record, rebuilt, write_derived
from edgefold.models.distill import DistillOptions
from edgefold.models.distill import distill as train_with_teacher
from edgefold.models.evaluate import top1
from edgefold.models.fingerprint import source_digest
from edgefold.models.magnitude import SparsityReport, prune_in_rounds
from edgefold.models.prune import Pruned, Removed, prune_iteratively, prune_to_cost
from edgefold.models.remove_blocks import RemovedBlock, Shortened, remove_blocks_in_rounds
from edgefold.models.train import train
from edgefold.models.train_options import TrainOptions
from edgefold.recipe.data import as_the_teacher_takes_it
from edgefold.recipe.digest import module_digest, structure_digest
from edgefold.recipe.schema import DistillSection, PruneSection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgefold.network import Network

_LATENCY_SECS = 20.0  # of measuring one candidate
_TOLD = 3  # reasons for which axes stay whole
JUDGED_IMAGES = 1000  # on which blocks are judged


@dataclass(frozen=True, slots=True)
class Work:
    """A network on its way through the stages, with how it came about.

    ``state`` is the hash of all that led to it: stages that start from it are kept under this and their own settings.
    """

    network: Network
    source: str
    kwargs: dict[str, Any]
    state: str
    removed: tuple[Removed | RemovedBlock, ...] = ()
    history: tuple[str, ...] = ()
    accuracy: float | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The example inputs as a tuple."""
        return as_tensors(self.network.example_inputs)


@dataclass(frozen=True, slots=True)
class Training:
    """What the stages train with; ``data`` may be missing where nothing is trained."""

    data: TrainingData | None
    options: dict[str, Any] = field(default_factory=dict)

    def for_epochs(self, epochs: int) -> TrainOptions:
        """Training options with the settings of the recipe."""
        # A tenth of the rate that networks are trained with from scratch: theirs are weights already.
        return TrainOptions(**{"epochs": epochs, "learning_rate": 0.02, "warmup_epochs": 0.2, **self.options})


def start(network: Network, source: str, kwargs: dict[str, Any]) -> Work:
    """A network before its first stage. What was made of another source earlier keeps that source and its history."""
    removed: tuple[Removed | RemovedBlock, ...] = ()
    history: tuple[str, ...] = ()
    if source.endswith(".json"):
        record = read_record(Path(source))
        source, kwargs, removed, history = record.source, record.kwargs, record.removed, record.history
    file, colon, function = source.rpartition(":") if ".py:" in source else (source, "", "")
    if Path(file).is_file():  # the record may be read from another folder
        source = f"{Path(file).resolve()}{colon}{function}"
    # The same weights in other code are another network, and other numbers in the same code too.
    content = [source, source_digest(source), kwargs, version("edgefold"), version("torch")]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(module_digest(network.module, as_tensors(network.example_inputs)).encode())
    return Work(network, source, kwargs, digest.hexdigest(), removed, history)


def needs_data(settings: PruneSection) -> bool:
    """Whether pruning looks at images: to train, or to judge what blocks are worth."""
    return bool(settings.epochs) or settings.blocks is not None


def prune(work: Work, settings: PruneSection, training: Training, folder: Path) -> Work:
    """Removes channels, blocks or single weights as the target says, with fine-tuning after each round.

    Raises:
        InputError: the network cannot be pruned so far; see `edgefold.models.prune.prune_channels`,
            `edgefold.models.remove_blocks.remove_blocks_in_rounds` and `edgefold.models.magnitude.magnitude_prune`.
    """
    state = _after(work, "prune", settings, training if needs_data(settings) else None)
    own = folder / f"prune-{state[:12]}"
    kept = _kept(work, own, state)
    if kept is not None:
        return kept
    module, inputs = work.network.module, work.inputs
    options = training.for_epochs(settings.epochs) if settings.epochs else None
    accuracy: list[float] = []

    def fine_tune(network: nn.Module, index: int) -> None:
        if options is not None and training.data is not None:
            # What is removed to reach a latency may differ when it is measured again: then there is nothing to resume.
            place = own / f"round{index}-{structure_digest(network)[:8]}"
            accuracy.append(train(network, training.data, options, out=place, resume=True).accuracy)

    removed: tuple[Removed | RemovedBlock, ...] = ()
    if settings.sparsity is not None:
        smaller = copy.deepcopy(module)
        text = _sparse(prune_in_rounds(smaller, settings.sparsity, settings.rounds, fine_tune))
    elif settings.blocks is not None:
        assert training.data is not None, "the caller loads data for this stage"
        judge = _judge(training.data)
        shortened = remove_blocks_in_rounds(module, inputs, judge, settings.blocks, settings.rounds, fine_tune)
        smaller, removed = shortened.module, tuple(RemovedBlock(each.name) for each in shortened.removals)
        text = _shortened(shortened)
    else:
        pruned, reached = _channels(work.network, inputs, settings, fine_tune)
        smaller, removed, text = pruned.module, pruned.removed, _pruned(pruned, reached)
    found = accuracy[-1] if accuracy else None
    sentence = text + _tuned(settings, found, training.data)
    return _done(work, own, state, smaller.eval(), removed, sentence, found)


def _channels(
    network: Network, inputs: tuple[Tensor, ...], settings: PruneSection, fine_tune: Callable[[nn.Module, int], None]
) -> tuple[Pruned, str]:
    """The network without the channels that matter least, fine-tuned; and the latency that it has, where that is the target.

    Raises:
        UsageError: the target cannot be met; of a latency with the shortest that was measured.
    """
    module, rounds = network.module, settings.rounds
    if settings.flops is not None:
        share, keep, step = settings.flops, settings.keep, settings.round_to
        return prune_iteratively(module, inputs, share, rounds, fine_tune, keep=keep, round_to=step), ""
    goal, cost = (settings.latency_ms or 0) * 1e6, _latency(network, settings)
    found: list[float] = []
    of_structure: dict[str, float] = {}  # fine-tuning changes no latency

    def timed(candidate: nn.Module) -> float:
        found.append(cost(candidate))
        of_structure[structure_digest(candidate)] = found[-1]
        return found[-1]

    try:
        pruned = prune_to_cost(module, inputs, timed, goal, rounds, fine_tune, keep=settings.keep, round_to=settings.round_to)
    except UsageError as error:
        if not found:
            raise
        raise UsageError(
            f"{error}; the fastest of the {len(found)} networks that were measured takes {min(found) / 1e6:.3g} ms, "
            f"the target is {settings.latency_ms:g} ms"
        ) from error
    reached = of_structure[structure_digest(pruned.module)] / 1e6
    where = f"{settings.device} as {settings.format} {settings.precision}"
    return pruned, f"; {reached:.3g} ms on {where}, the target is {settings.latency_ms:g} ms"


def _judge(data: TrainingData) -> Callable[[nn.Module], float]:
    """Top-1 on some training images: the test images say nothing about which block goes."""
    some = replace(data.train, images=data.train.images[:JUDGED_IMAGES], labels=data.train.labels[:JUDGED_IMAGES])
    return lambda network: top1(network, some)


def distill(work: Work, teacher: Network, settings: DistillSection, training: Training, folder: Path) -> Work:
    """Trains the network with the help of a teacher, which sees the same pictures, prepared as it declares.

    Raises:
        InputError: the two do not go together, or there is no data; see `edgefold.models.distill.distill`.
    """
    assert training.data is not None, "the caller loads data for this stage"
    preprocessing = teacher.preprocessing
    adapt = as_the_teacher_takes_it(training.data.train, work.network.preprocessing, preprocessing)
    taught = module_digest(teacher.module, as_tensors(teacher.example_inputs)) + ("" if adapt is None else repr(preprocessing))
    state = _after(work, "distill", settings, training, taught)
    own = folder / f"distill-{state[:12]}"
    kept = _kept(work, own, state)
    if kept is not None:
        return kept
    module = copy.deepcopy(work.network.module)
    result = train_with_teacher(
        module,
        teacher.module,
        training.data,
        training.for_epochs(settings.epochs),
        DistillOptions(settings.temperature, settings.alpha, settings.hint_pairs(), settings.hint_weight),
        adapt=adapt,
        out=own / "run",
        resume=True,
    )
    sentence = (
        f"Distilled for {_epochs(settings.epochs)}: "
        f"{result.accuracy:.2%} top-1 on {len(training.data.test):,} test {training.data.test.noun} of {training.data.name}."
    )
    return _done(work, own, state, module.eval(), (), sentence, result.accuracy)


def _after(work: Work, stage: str, settings: object, training: Training | None, teacher: str = "") -> str:
    """The hash of the network after a stage; ``teacher`` stands for a teacher."""
    trained = None if training is None or training.data is None else [training.data.prepared_sha256, training.options]
    content = [work.state, stage, asdict(settings), trained, teacher]  # type: ignore[call-overload]  # a dataclass
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _kept(work: Work, folder: Path, state: str) -> Work | None:
    """The result of a stage that is there already, and whole."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record = read_record(path)
        # The channels of earlier stages are gone already: only those of this one are left to remove.
        own = replace(record, removed=record.removed[len(work.removed) :])
        module = rebuilt(own, path, work.network.module, work.inputs)
    except ArtifactError:  # damaged: made again
        return None
    network = replace(work.network, module=module)
    return replace(work, network=network, state=state, removed=record.removed, history=record.history, accuracy=record.accuracy)


def _done(
    work: Work,
    folder: Path,
    state: str,
    module: nn.Module,
    removed: Sequence[Removed | RemovedBlock],
    sentence: str,
    accuracy: float | None,
) -> Work:
    after = replace(
        work,
        network=replace(work.network, module=module),
        state=state,
        removed=(*work.removed, *removed),
        history=(*work.history, sentence),
        accuracy=accuracy,
    )
    write_derived(folder, module, work.source, work.kwargs, after.removed, after.history, accuracy)
    return after


def _latency(network: Network, settings: PruneSection) -> Callable[[nn.Module], float]:
    """The time of a network on the device in nanoseconds: it is exported and measured."""
    from edgefold.device_bench import BenchOptions, bench
    from edgefold.pipeline import export_model
    from edgefold.schemes import scheme_of

    calibrated = scheme_of(settings.precision).calibrated
    calibration = network.calibration if calibrated else None
    if calibration is None and calibrated:
        raise UsageError(f'pruning to a latency in {settings.precision} needs calibration data; give precision = "fp32"')
    options = BenchOptions(processes=3, max_secs=_LATENCY_SECS)

    def measured(module: nn.Module) -> float:
        with tempfile.TemporaryDirectory(prefix="edgefold-prune-") as folder:
            artifact = export_model(
                module,
                network.example_inputs,
                format=settings.format,
                precision=settings.precision,
                calibration=calibration,
                timing=False,
                out=Path(folder) / f"candidate{settings.format.suffix}",
            )
            return bench(artifact, settings.device, options=options).median_ns

    return measured


def _pruned(pruned: Pruned, reached: str) -> str:
    report = pruned.report
    counts = f" with channel counts in multiples of {report.round_to}" if report.round_to > 1 else ""
    whole = "; ".join(report.skipped[:_TOLD]) + ("; and others" if len(report.skipped) > _TOLD else "")
    return (
        f"Pruned to {report.macs / report.macs_before:.1%} of the multiply-accumulates "
        f"({report.macs_before:,} → {report.macs:,}) "
        f"and {report.parameters:,} of {report.parameters_before:,} parameters{counts}{reached}"
        + (f"; left whole: {whole}" if whole else "")
    )


def _shortened(shortened: Shortened) -> str:
    names = ", ".join(removal.name for removal in shortened.removals)
    return (
        f"Removed {names}: {shortened.removals[-1].quality:.2%} top-1 on training images instead of "
        f"{shortened.quality_before:.2%}"
    )


def _sparse(report: SparsityReport) -> str:
    return (
        f"Set single weights to zero, now {report.zeros:,} of {report.weights:,} ({report.sparsity:.1%}), "
        "which makes no file faster"
    )


def _tuned(settings: PruneSection, accuracy: float | None, data: TrainingData | None) -> str:
    """The end of a sentence about pruning."""
    if accuracy is None or data is None:
        return ", without fine-tuning."
    rounds = f" in each of {settings.rounds} rounds" if settings.rounds > 1 else ""
    return (
        f", fine-tuned for {_epochs(settings.epochs)}{rounds}: "
        f"{accuracy:.2%} top-1 on {len(data.test):,} test {data.test.noun} of {data.name}."
    )


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"
