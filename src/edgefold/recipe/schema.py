"""What stands in a recipe file.

    [model]                          # required; any source
    name = "hetnet-fmnist"
    kwargs = {}

    [data]                           # for training; without it Fashion-MNIST of the Debian package
    source = "photos"                # as `edgefold train --data`

    [train]                          # what prune and distill have in common: fields of TrainOptions but the epochs
    learning_rate = 0.02

    [prune]
    flops = 0.5                      # or latency_ms = 3.0, blocks = 2 or sparsity = 0.8
    epochs = 2                       # of fine-tuning after each round

    [distill]
    epochs = 3                       # the teacher is the network as it was before pruning, or `teacher`

    [ship]
    formats = ["onnx", "tflite", "executorch"]
    precisions = ["fp32", "int8"]
    calibration = "pictures"         # as `edgefold ship --calibration`; likewise evaluation, dynamic_batch and others

A section that is left out, or has ``skip = true``, is a stage that is left out; ``skip`` of ``[ship]`` names those of shipping.
Paths are relative to the recipe's folder.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from edgefold.artifact import MAX_BATCH, Format, Precision
from edgefold.errors import UsageError, unknown_name
from edgefold.network import ALL_FORMATS, DEFAULT_PRECISIONS
from edgefold.recipe.checks import check_device, check_trained
from edgefold.schemes import check_format, combinations


@dataclass(frozen=True, slots=True)
class ModelSection:
    """The network to start from."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True)
class DataSection:
    """The data to train with."""

    source: str | None = None
    image_size: int | None = None


@dataclass(frozen=True, slots=True)
class PruneSection:
    """What goes, by exactly one of `TARGETS`.

    Channels go until a share of the multiply-accumulates or a latency on a device is reached, or a number of whole blocks,
    the least important first, or a share of single weights, which saves no time.

    The latency is that of one ``format`` and ``precision``, measured anew for each candidate. ``keep`` and ``round_to`` are those
    of `edgefold.models.prune.prune_channels`.
    """

    flops: float | None = None
    latency_ms: float | None = None
    blocks: int | None = None
    sparsity: float | None = None
    device: str = "host"
    format: Format = Format.ONNX
    precision: Precision = Precision.FP32
    rounds: int = 1
    epochs: int = 1
    keep: float = 0.1
    round_to: int = 16
    skip: bool = False


@dataclass(frozen=True, slots=True)
class DistillSection:
    """How the network learns from a teacher.

    ``hints`` are pairs of layers whose outputs are compared as well, such as ``"features.3=features.5"``, the student's first;
    their loss counts ``hint_weight`` times.
    """

    epochs: int = 3
    teacher: str | None = None
    teacher_kwargs: dict[str, Any] = field(default_factory=dict)
    teacher_weights: str | None = None
    temperature: float = 4.0
    alpha: float = 0.7
    hints: tuple[str, ...] = ()
    hint_weight: float = 1.0
    skip: bool = False

    def hint_pairs(self) -> tuple[tuple[str, str], ...]:
        """The hints as (layer of the student, layer of the teacher).

        Raises:
            UsageError: one has another form.
        """
        pairs = []
        for hint in self.hints:
            student, equals, teacher = hint.partition("=")
            if not (student and equals and teacher):
                raise UsageError(f"hint '{hint}' names no two layers; write STUDENT=TEACHER, e.g. features.3=features.5")
            pairs.append((student, teacher))
        return tuple(pairs)


@dataclass(frozen=True, slots=True)
class ShipSection:
    """What is made of the network in the end.

    ``calibration`` and ``evaluation`` are as the options of `edgefold ship` of these names. The rest is as in
    `edgefold.network.ShipOptions`; ``max_size`` is in bytes.
    """

    formats: tuple[Format, ...] = ALL_FORMATS
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    calibration: str | None = None
    evaluation: str | None = None
    device: str | None = None  # this machine, if none is named
    lowering: Literal["auto", "keep", "dense", "grouped", "split"] = "auto"
    max_drop: float = 0.5
    threads: int = 1
    max_secs: float = 120.0
    timing: bool | None = None
    observer: Literal["auto", "minmax", "percentile", "mse", "entropy"] = "auto"
    equalize: bool = False
    exclude: tuple[str, ...] = ()
    agree: bool = False
    io: Literal["float32", "int8", "uint8"] = "float32"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dynamic_batch: bool = False
    max_batch: int = MAX_BATCH
    portable: bool = False
    max_size: int | None = None
    skip: tuple[str, ...] = ()  # of SHIP_STAGES


@dataclass(frozen=True, slots=True)
class ShipRecipe:
    """A whole run. ``train`` holds fields of `edgefold.models.train_options.TrainOptions`."""

    model: ModelSection
    data: DataSection = DataSection()
    train: dict[str, Any] = field(default_factory=dict)
    prune: PruneSection | None = None
    distill: DistillSection | None = None
    ship: ShipSection = ShipSection()


SECTIONS: Final = {
    "model": ModelSection,
    "data": DataSection,
    "prune": PruneSection,
    "distill": DistillSection,
    "ship": ShipSection,
}
SHIP_STAGES: Final = ("fold", "quantize", "measure")
STAGES: Final = ("prune", "distill", *SHIP_STAGES)
TARGETS: Final = ("flops", "latency_ms", "blocks", "sparsity")


def read_recipe(path: Path) -> ShipRecipe:
    """The recipe in a file, with paths relative to its folder made absolute.

    Raises:
        UsageError: no such file, not TOML, an unknown section or key, a value of the wrong type, or no or two targets of pruning.
        UnsupportedError: a precision that has no file in the formats asked for.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe '{path}' cannot be read: {error.strerror}; give the path of a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe '{path}' is not TOML: {error}") from error
    for name in data:
        if name not in (*SECTIONS, "train"):
            raise unknown_name(f"section of recipe '{path}'", name, (*SECTIONS, "train"))
    if "model" not in data:
        raise UsageError(f"recipe '{path}' has no [model]; name the network to start from, as in name = \"hetnet-fmnist\"")
    given: dict[str, Any] = {name: _section(path, name, kind, data[name]) for name, kind in SECTIONS.items() if name in data}
    recipe = ShipRecipe(**given, train=_train(path, data.get("train", {})))
    _check(path, recipe)
    return _absolute(recipe, path.resolve().parent)


def _section(path: Path, name: str, kind: type[Any], values: object) -> Any:
    from pydantic import TypeAdapter, ValidationError

    known = [entry.name for entry in fields(kind)]
    for key in _table(path, name, values):
        if key not in known:
            raise unknown_name(f"key of [{name}] in recipe '{path}'", key, known)
    try:
        # As JSON: strict about types there, but lists are tuples and words are members of enumerations.
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except TypeError as error:
        raise UsageError(f"recipe '{path}' has a date or time in [{name}], expected numbers, words, tables and lists") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"recipe '{path}' has a wrong value at [{name}] {where}: {first['msg']}") from error


def _train(path: Path, values: object) -> dict[str, Any]:
    from edgefold.models.train_options import TrainOptions

    table = _table(path, "train", values)
    known = [entry.name for entry in fields(TrainOptions) if entry.name != "epochs"]
    for key, value in table.items():
        if key not in known:
            raise unknown_name(f"key of [train] in recipe '{path}'", key, known)
        wanted = type(getattr(TrainOptions(), key))
        if not isinstance(value, (int, float) if wanted is float else wanted) or (wanted is not bool and isinstance(value, bool)):
            raise UsageError(f"recipe '{path}' has [train] {key} = {value!r}, expected a value of type {wanted.__name__}")
    check_training(table)
    return dict(table)


def _table(path: Path, name: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise UsageError(f"recipe '{path}' has {name} = {values!r}, expected a table [{name}]")
    return values


def _check(path: Path, recipe: ShipRecipe) -> None:
    combinations(recipe.ship.formats, recipe.ship.precisions)  # refuses a precision that is in none
    for name in recipe.ship.skip:
        if name not in SHIP_STAGES:
            raise unknown_name(f"stage in [ship] skip of recipe '{path}'", name, SHIP_STAGES)
    _check_ship(recipe.ship)
    check_device(recipe.ship.device, f"recipe '{path}', [ship]")
    check_trained(recipe.train, recipe.prune, recipe.distill)
    if recipe.data.image_size is not None and recipe.data.image_size < 1:
        raise UsageError(f"recipe '{path}' has an image_size of {recipe.data.image_size} in [data], expected at least 1")
    if recipe.distill is not None:
        _check_distill(path, recipe.distill)
    prune = recipe.prune
    if prune is None:
        return
    check_device(prune.device, f"recipe '{path}', [prune]")
    if prune.latency_ms is not None:
        check_format(prune.format, prune.precision)
    given = targets(prune)
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        raise UsageError(f"recipe '{path}' has {found} as target of [prune]; give one of {', '.join(TARGETS)}")
    check_pruning(prune)
    distilled = recipe.distill is not None and not recipe.distill.skip
    if prune.sparsity is not None and not prune.skip and distilled:
        raise UsageError(f"recipe '{path}' prunes single weights, which [distill] would fill again; leave out one of the two")


def _check_distill(path: Path, distill: DistillSection) -> None:
    check_distilling(distill)
    if distill.teacher is None and (distill.teacher_kwargs or distill.teacher_weights is not None):
        raise UsageError(f"recipe '{path}' has arguments or weights of a teacher, but no teacher in [distill]; name it")


def check_training(train: Mapping[str, Any]) -> None:
    """Refuses options of training before anything is made that is trained later.

    Raises:
        UsageError: one is out of its range.
    """
    from edgefold.models.train_options import TrainOptions, check_options

    check_options(TrainOptions(**train))


def check_distilling(distill: DistillSection) -> None:
    """Refuses options of distillation before anything is made that is distilled later.

    Raises:
        UsageError: a number is out of its range, a hint names no two layers, or a weight of hints is given and no hint.
    """
    from edgefold.models.distill import DistillOptions, check_options

    hints = distill.hint_pairs()
    if distill.epochs < 1:
        raise UsageError(f"distillation option epochs is {distill.epochs}, expected at least 1")
    check_options(DistillOptions(distill.temperature, distill.alpha, hints, distill.hint_weight))
    if not hints and distill.hint_weight != DistillSection().hint_weight:
        raise UsageError(
            f"distillation option hint_weight is {distill.hint_weight:g}, but there are no hints that it weighs; "
            "give a hint, such as features.3=features.5, or leave it out"
        )


def _check_ship(ship: ShipSection) -> None:
    from edgefold.device_bench import BenchOptions

    BenchOptions(threads=ship.threads, max_secs=ship.max_secs)  # refuses others
    if not (math.isfinite(ship.max_drop) and ship.max_drop >= 0):
        raise UsageError(f"option max_drop of [ship] is {ship.max_drop}, expected at least 0 points of accuracy")
    for name, value, least in (("max_batch", ship.max_batch, 2), ("max_size", 1 if ship.max_size is None else ship.max_size, 1)):
        if value < least:
            raise UsageError(f"option {name} of [ship] is {value}, expected at least {least}")


def check_pruning(prune: PruneSection) -> None:
    """Refuses a target that nothing can meet, and rounds in which nothing could be pruned, before anything is measured.

    Raises:
        UsageError: a number is out of its range, there are more rounds than blocks to remove, or an option is given that the
            target does not use.
    """
    if prune.flops is not None and not 0 < prune.flops < 1:
        raise UsageError(f"pruning target is {prune.flops} of the multiply-accumulates, expected a share between 0 and 1")
    if prune.latency_ms is not None and not (math.isfinite(prune.latency_ms) and prune.latency_ms > 0):
        raise UsageError(f"pruning target is a latency of {prune.latency_ms} ms, expected a number above 0")
    if prune.sparsity is not None and not 0 <= prune.sparsity < 1:
        raise UsageError(f"pruning target is a sparsity of {prune.sparsity}, expected a share from 0 to below 1")
    if not 0 < prune.keep <= 1:
        raise UsageError(f"pruning option keep is {prune.keep}, expected a share above 0 and up to 1")
    for name, value, least in (
        ("rounds", prune.rounds, 1),
        ("epochs", prune.epochs, 0),
        ("round_to", prune.round_to, 1),
        ("blocks", 1 if prune.blocks is None else prune.blocks, 1),
    ):
        if value < least:
            raise UsageError(f"pruning option {name} is {value}, expected at least {least}")
    if prune.blocks is not None and prune.rounds > prune.blocks:
        raise UsageError(
            f"removing {prune.blocks} blocks in {prune.rounds} rounds leaves some without a block; give at most as many rounds"
        )
    _refuse_unused(prune)


def _refuse_unused(prune: PruneSection) -> None:
    """Refuses options that other targets have."""
    default = PruneSection()
    for names, used, what in (
        (("device", "format", "precision"), prune.latency_ms is not None, "a target of latency_ms"),
        (
            ("keep", "round_to"),
            prune.flops is not None or prune.latency_ms is not None,
            "removing channels, by flops or latency_ms",
        ),
    ):
        for name in names:
            if not used and getattr(prune, name) != getattr(default, name):
                raise UsageError(f"pruning option {name} is for {what}, which is not asked for; leave it out")


def targets(prune: PruneSection) -> tuple[str, ...]:
    """The names of the targets that are given."""
    return tuple(name for name in TARGETS if getattr(prune, name) is not None)


def _absolute(recipe: ShipRecipe, folder: Path) -> ShipRecipe:
    def found(name: str | None) -> str | None:
        if name is None:
            return None
        file, colon, function = name.rpartition(":") if ".py:" in name else (name, "", "")
        return f"{folder / file}{colon}{function}" if (folder / file).exists() else name

    model = replace(recipe.model, name=found(recipe.model.name) or "", weights=found(recipe.model.weights))
    distill = recipe.distill and replace(
        recipe.distill, teacher=found(recipe.distill.teacher), teacher_weights=found(recipe.distill.teacher_weights)
    )
    ship = replace(recipe.ship, calibration=found(recipe.ship.calibration), evaluation=found(recipe.ship.evaluation))
    data = replace(recipe.data, source=found(recipe.data.source))
    return replace(recipe, model=model, data=data, distill=distill, ship=ship)
