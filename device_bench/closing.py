"""Writes the file of a network in the form that is the fastest as a whole.

Costs are known layer by layer; how layers follow each other in a runtime (who shares a delegate's partition, what stays in the
cache, where a type is converted) is not in them. So the lowering `auto` ends with a measurement: the choice layer by layer runs
against each uniform lowering that differs from it, on the device, interleaved (`edgefold.device_bench.race`), and in integers
against itself with what suits a runtime's kernels (`VARIANTS`). Another form wins only where its interval lies beyond `TIE`,
so that a tie keeps the choice and two runs give the same file.

A limit on the file's size is kept here too, since only a written file has one: the weights get a budget, and the budget shrinks
by what the file is too large.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edgefold.artifact import Artifact, Format, Precision, atomic_path
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import Race, RaceOptions, race
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.errors import EdgefoldError, UsageError
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.columns import LANES, TILES, columns
from edgefold.export.lower.costs import CostModel
from edgefold.export.lower.lower import lower
from edgefold.export.lower.widen import widen
from edgefold.export.plan import Lowering, LoweringPlan, NetworkTiming, TimedForm
from edgefold.export.program import LoweredProgram, Program
from edgefold.schemes import scheme_of

AUTO: Final = "auto"
WIDE, COLUMNS, FEW_COLUMNS = "wide", "columns", "few-columns"
# Forms of the choice layer by layer in integers, as `edgefold.export.plan.LoweringPlan` describes them.
VARIANTS: Final = {
    WIDE: "the choice with more channels",
    COLUMNS: "the choice with columns as channels",
    FEW_COLUMNS: "the choice with a few columns as channels",
}
UNIFORM: Final = (Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT, Lowering.KEEP)
TIE: Final = 0.015
FASTER: Final = 1 / (1 + TIE)
# A uniform lowering whose measured layers take so many times what the choice takes is not written: it cannot win.
HOPELESS: Final = 1.5
SHRINKINGS: Final = 4
RACES: Final = 4  # at most, where one does not tell


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted of a file.

    ``timing`` lets `auto` end with a measurement of the whole network; by default where ``device`` is this machine. ``race`` says
    how it is made. ``max_size_bytes`` is the most that the file may have. ``choices`` are the forms of layers, by module path,
    where these are settled; then there is nothing to measure. ``native`` says that the file is for this very device: forms may
    win that are slow on CPUs unlike its.
    """

    format: Format
    precision: Precision
    lowering: str = AUTO
    device: str = "host"
    costs: CostModel | None = None
    timing: bool | None = None
    max_size_bytes: int | None = None
    choices: Mapping[str, Lowering] | None = None
    native: bool = False
    race: RaceOptions = field(default_factory=RaceOptions)

    def __post_init__(self) -> None:
        if self.max_size_bytes is not None and self.max_size_bytes < 1:
            raise UsageError(f"max_size_bytes is {self.max_size_bytes}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Written:
    """A file and how it came to its form."""

    artifact: Artifact
    plan: LoweringPlan


@dataclass(slots=True)
class _Form:
    """One form of the network; ``artifact`` is there once it is written."""

    name: str
    lowered: LoweredProgram
    artifact: Artifact | None = None
    note: str = ""

    @property
    def ways(self) -> tuple[Lowering, ...]:
        """What is done with each layer."""
        return tuple(layer.choice for layer in self.lowered.plan.layers)

    @property
    def cost_ns(self) -> float | None:
        """The sum of the layers' times; ``None`` if one of those with a choice was not measured."""
        layers = [layer for layer in self.lowered.plan.layers if len(layer.candidates) > 1]
        if any(layer.chosen.estimated for layer in layers):
            return None
        return sum(layer.chosen.cost_ns for layer in layers)


def emit_fastest(program: Program, request: Request, options: EmitOptions, out: Path, progress: Callable[[], None]) -> Written:
    """Writes ``program`` to ``out`` as ``request`` wants it; ``progress`` is called after each form that was written.

    Raises:
        UsageError: options that do not go together, or no form is as small as ``max_size_bytes``.
        UnsupportedError: an op that the format cannot express.
        RuntimeFailure: the converter broke.
        OutputError: ``out`` exists or cannot be written.
    """
    form = _Form(request.lowering, _lowered(program, request))
    untimed = _why_not(request)
    if request.max_size_bytes is None and untimed:
        artifact = get_emitter(request.format).emit(form.lowered, options, out)
        progress()
        return Written(artifact, _with_reason(form.lowered.plan, untimed))
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        writer = _Writer(Path(folder), options, progress)
        writer.write(form)
        note = ""
        if request.max_size_bytes is not None:
            form, note = _fitting(form, program, request, writer)
        timing: NetworkTiming | None = None
        if not untimed:
            form, timing, untimed = _closed(form, program, request, writer)
        assert form.artifact is not None
        with atomic_path(out, force=options.force) as temporary:
            shutil.copyfile(form.artifact.path, temporary)
        plan = replace(_with_reason(form.lowered.plan, note, untimed), lowering=request.lowering, timing=timing)
        return Written(replace(form.artifact, path=out), plan)


class _Writer:
    """Writes forms into a folder, each under a name of its own."""

    def __init__(self, folder: Path, options: EmitOptions, progress: Callable[[], None]) -> None:
        self.options = replace(options, force=True)
        self._folder, self._progress = folder, progress
        self._count = 0

    def write(self, form: _Form) -> Artifact:
        """Writes one form."""
        self._count += 1
        path = self._folder / f"{self._count}-{form.name}{form.lowered.format.suffix}"
        form.artifact = get_emitter(form.lowered.format).emit(form.lowered, self.options, path)
        self._progress()
        return form.artifact


def _lowered(program: Program, request: Request, lowering: str | None = None, budget_bytes: int | None = None) -> LoweredProgram:
    return lower(
        program,
        format=request.format,
        precision=request.precision,
        lowering=(lowering or request.lowering) if request.choices is None else request.choices,
        device=request.device,
        costs=request.costs,
        budget_bytes=budget_bytes,
        whole=request.choices is not None,
    )


def _why_not(request: Request) -> str:
    """Why the network's forms are not timed; empty where they are."""
    if request.choices is not None:
        return "not timed: the formats agree on the form of each layer"
    if request.lowering != AUTO:
        return f"not timed: {request.lowering} was asked for"
    if request.timing is False:
        return "not timed: it was not wanted"
    if request.device == "fake":
        return "not timed: the fake device draws its times"
    if request.timing is None and request.device != "host":
        return f"not timed: '{request.device}' is not this machine"
    return ""


def _with_reason(plan: LoweringPlan, *reasons: str) -> LoweringPlan:
    return replace(plan, reason="; ".join(reason for reason in reasons if reason))


def _fitting(first: _Form, program: Program, request: Request, writer: _Writer) -> tuple[_Form, str]:
    """A form whose file is within the limit, and what was done for it."""
    limit = request.max_size_bytes
    assert limit is not None
    assert first.artifact is not None
    form, size = first, first.artifact.size_bytes
    smallest = size
    if request.lowering == AUTO:
        # What is not a convolution's weight stays as it is, so that much is left for the weights.
        budget = _weight_bytes(first) - (size - limit)
        for _ in range(SHRINKINGS):
            if size <= limit:
                break
            form = _Form(AUTO, _lowered(program, request, budget_bytes=max(budget, 0)))
            size = writer.write(form).size_bytes
            smallest = min(smallest, size)
            if budget <= 0:
                break
            budget = min(budget, _weight_bytes(form)) - max(size - limit, 0)
    if size > limit:
        raise UsageError(
            f"no {request.format} file of precision '{request.precision}' is within {limit:,} bytes, the smallest has "
            f"{smallest:,}; allow more, or choose a smaller precision or network"
        )
    if form is first:
        return form, f"{size:,} bytes, within the {limit:,} that are allowed"
    changed = sum(old is not new for old, new in zip(first.ways, form.ways, strict=True))
    more_us = (_total_ns(form) - _total_ns(first)) / 1e3
    return form, (
        f"{size:,} bytes: the fastest layers would make {first.artifact.size_bytes:,}, above the {limit:,} that are allowed, so "
        f"{changed} of them have smaller forms ({more_us:+.1f} µs by their costs)"
    )


def _weight_bytes(form: _Form) -> int:
    return sum(layer.chosen.weight_bytes for layer in form.lowered.plan.layers)


def _total_ns(form: _Form) -> float:
    return sum(layer.chosen.cost_ns for layer in form.lowered.plan.layers)


def _closed(chosen: _Form, program: Program, request: Request, writer: _Writer) -> tuple[_Form, NetworkTiming | None, str]:
    """The form that wins, the timing, and why there was none."""
    with open_runner(request.device) as runner:
        if runner.info().emulated:
            return chosen, None, f"not timed: '{request.device}' is emulated, and emulated devices never choose"
        forms = _forms(chosen, program, request, writer)
        running = [form for form in forms if not form.note]
        if len(running) == 1:
            return chosen, None, _alone(forms)
        try:
            cases = [make_case(form.artifact, seed=0) for form in running if form.artifact is not None]
            found = settle(cases, runner, Launchers(runner), request.race)
        except EdgefoldError as error:
            return chosen, None, f"not timed: {error}"
    winner, reason = decide(found, [form.name for form in running])
    timed = {id(form): place for place, form in enumerate(running)}
    entries = tuple(_entry(form, found, timed.get(id(form))) for form in forms)
    best = running[winner]
    timing = NetworkTiming(request.device, found.runtime, found.blocks, entries, best.name, reason)
    return (best if best is chosen else _renamed(best, reason)), timing, ""


def _forms(chosen: _Form, program: Program, request: Request, writer: _Writer) -> list[_Form]:
    """The choice and all others, written where they differ from those before them and may win."""
    forms = [chosen]
    for lowering in UNIFORM:
        form = _Form(lowering.value, _lowered(program, request, lowering))
        same = next((other for other in forms if not other.note and other.ways == form.ways), None)
        if same is not None:
            form.note = f"the same as {same.name}"
        elif form.cost_ns is not None and chosen.cost_ns is not None and form.cost_ns > HOPELESS * chosen.cost_ns > 0:
            form.note = f"its layers take {form.cost_ns / chosen.cost_ns:.1f} times as long by their measured costs"
        else:
            _try_to_write(form, request, writer)
        forms.append(form)
    for variant in _variants(chosen.lowered, request, writer.options):
        forms.append(variant)
        _try_to_write(variant, request, writer)
        twin = next((other for other in forms[:-1] if _is_same_file(other, variant)), None)
        if twin is not None:
            variant.note = f"the same as {twin.name}"
    return forms


def _variants(lowered: LoweredProgram, request: Request, options: EmitOptions) -> list[_Form]:
    """The choice in the forms that the runtime's integer kernels may be faster with."""
    scheme = scheme_of(lowered.precision)
    if not scheme.calibrated or scheme.activation_bits != 8:
        return []
    made: dict[str, LoweredProgram] = {}
    # Columns as channels are up to thirty times the products for fewer tiles, for CPUs that multiply tiles; they fix the batch.
    tiles = request.native and not options.dynamic_batch
    if lowered.format is Format.ONNX:
        made[WIDE] = widen(lowered)
        for name, kernel in ((COLUMNS, TILES), (FEW_COLUMNS, LANES)) if tiles else ():
            by_columns = columns(lowered, kernel)
            if by_columns is not lowered:
                made[name] = widen(by_columns)
    elif lowered.format is Format.TFLITE and tiles:
        made[WIDE] = replace(lowered, plan=replace(lowered.plan, wide=True))
    return [_Form(name, form) for name, form in made.items() if form is not lowered]


def _is_same_file(one: _Form, other: _Form) -> bool:
    return one.artifact is not None and other.artifact is not None and one.artifact.sha256 == other.artifact.sha256


def _try_to_write(form: _Form, request: Request, writer: _Writer) -> None:
    try:
        size = writer.write(form).size_bytes
        if request.max_size_bytes is not None and size > request.max_size_bytes:
            form.note = f"{size:,} bytes are more than allowed"
    except EdgefoldError as error:
        form.note = f"it cannot be written: {error}"


def _alone(forms: list[_Form]) -> str:
    others = [form for form in forms[1:] if not form.note.startswith("the same")]
    if not others:
        return "not timed: every uniform lowering is the same network"
    return "not timed: " + "; ".join(f"{form.name}: {form.note}" for form in others)


def settle(cases: list[Case], runner: Runner, launchers: Launchers, options: RaceOptions) -> Race:
    """Races the forms, of which the first is the choice layer by layer, until it is clear whether another is faster."""
    found = race(cases, runner, launchers, options)
    for _ in range(RACES - 1):
        nearest = min((found.ratio(place, 0) for place in range(1, len(cases))), key=lambda ratio: ratio.value)
        if nearest.high < FASTER or nearest.low >= FASTER:
            break
        found = found.joined(race(cases, runner, launchers, options))
    return found


def decide(found: Race, names: list[str]) -> tuple[int, str]:
    """Which form wins, of which the first is the choice layer by layer, and why."""
    ratios = {place: found.ratio(place, 0) for place in range(1, len(names))}
    place = min(ratios, key=lambda place: ratios[place].value)
    best = ratios[place]
    if best.high >= FASTER:
        return 0, (
            f"no other form is faster by more than {TIE:.1%} over the whole network: the nearest is {names[place]} with "
            f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}] of its time"
        )
    said = VARIANTS.get(names[place], f"{names[place]} for all layers")
    return place, (
        f"{said} takes {best.value:.3f} [{best.low:.3f}, {best.high:.3f}] of the time that the choice layer by layer takes"
    )


def _entry(form: _Form, found: Race, place: int | None) -> TimedForm:
    size = None if form.artifact is None else form.artifact.size_bytes
    if place is None:
        return TimedForm(form.name, size, note=form.note)
    return TimedForm(form.name, size, found.median_ns(place), found.ratio(place, 0) if place else None)


def _renamed(form: _Form, reason: str) -> _Form:
    """The winner with the reason at each of its layers that had a choice."""
    layers = tuple(
        replace(layer, reason=f"the whole network was timed: {reason}") if len(layer.candidates) > 1 else layer
        for layer in form.lowered.plan.layers
    )
    plan = replace(form.lowered.plan, layers=layers)
    return _Form(form.name, replace(form.lowered, plan=plan), form.artifact)
