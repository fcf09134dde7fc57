"""Several files of one format against each other on one device: which is the fastest, and by how much.

Where the device has Python, all files are loaded into one process and take turns A B C C B A (see `edgefold.runtime.race`), in
a few fresh processes one after the other. A process has one layout of its memory, by which a file may be some percent faster than
its own copy; each process begins to load with another file. The native runner holds one model, so there each turn is a fresh
process. Either way a block holds two turns of each file, a drift that is linear over it cancels out of the ratios, and the mean
of the blocks' logarithms has a t interval.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefold.device_bench import stats
from edgefold.device_bench.cases import GRACE_S, Case
from edgefold.device_bench.launch import Launcher, Launchers, Racer
from edgefold.device_bench.method import START_S, placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.base import Runner
from edgefold.errors import UsageError
from edgefold.results import DeviceInfo, Estimate
from edgefold.runtime.protocol import read_answer
from edgefold.runtime.session import save_inputs


@dataclass(frozen=True, slots=True)
class RaceOptions:
    """How long a race is: ``processes`` fresh ones of ``blocks`` blocks each, with turns of ``turn_s``.

    ``max_s`` ends a process early after two blocks; loading is not counted. ``cores`` pins it, e.g. ``"4-7"``.
    """

    processes: int = 2
    blocks: int = 6
    turn_s: float = 0.01
    max_s: float = 10.0
    threads: int = 1
    cores: str | None = None

    def __post_init__(self) -> None:
        for name in ("processes", "blocks", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.turn_s < 0 or self.max_s <= 0:
            raise UsageError(f"a turn of {self.turn_s} s in at most {self.max_s} s is no race; give more time")


@dataclass(frozen=True, slots=True)
class Race:
    """The turns of each file, in the order given: ``turns_ns[file][turn]``, of which 2i and 2i + 1 make block i."""

    runtime: str
    device: DeviceInfo
    turns_ns: tuple[tuple[float, ...], ...]

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.turns_ns[0]) // 2

    def lowest_ns(self, file: int) -> float:
        """The fastest turn of a file: a median of runs, so that neither other work nor a clock that stands still makes it."""
        return min(self.turns_ns[file])

    def median_ns(self, file: int, blocks: Sequence[int] | None = None) -> float:
        """The median turn of a file over some blocks, all by default."""
        return statistics.median(turn for block in self._chosen(blocks) for turn in self._turns(file, block))

    def ratio(self, candidate: int, baseline: int, blocks: Sequence[int] | None = None) -> Estimate:
        """Time of one file over that of another, with its 95 % interval over the blocks."""
        logs = []
        for block in self._chosen(blocks):
            above, below = (sum(map(math.log, self._turns(file, block))) / 2 for file in (candidate, baseline))
            logs.append(above - below)
        return stats.mean_ratio(logs)

    def joined(self, other: Race) -> Race:
        """The turns of both, of the same files in the same order."""
        turns = tuple(one + two for one, two in zip(self.turns_ns, other.turns_ns, strict=True))
        return Race(self.runtime, self.device, turns)

    def _chosen(self, blocks: Sequence[int] | None) -> Sequence[int]:
        return range(self.blocks) if blocks is None else blocks

    def _turns(self, file: int, block: int) -> tuple[float, ...]:
        return self.turns_ns[file][2 * block : 2 * block + 2]


def race(
    cases: Sequence[Case],
    runner: Runner,
    launchers: Launchers,
    options: RaceOptions | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Race:
    """Runs cases of one format against each other; ``progress`` is called after each process.

    Raises:
        UsageError: the cases are of different formats.
        RuntimeFailure: the runtime crashed or refused a file.
        DeviceError: the device cannot be reached any more.
    """
    options = options or RaceOptions()
    formats = {case.format for case in cases}
    if len(formats) != 1:
        raise UsageError(
            f"a race needs files of one format, found {', '.join(sorted(formats)) or 'none'}; compare within a format"
        )
    launcher = launchers.of(cases[0].format)
    if launcher.racer is None:
        return _in_turns_of_processes(cases, runner, launcher, options, progress)
    return _in_one_process(cases, runner, launcher.racer, launcher.job(), options, progress)


def _in_one_process(
    cases: Sequence[Case],
    runner: Runner,
    racer: Racer,
    extras: Mapping[str, Any],
    options: RaceOptions,
    progress: Callable[[], None],
) -> Race:
    form = cases[0].format
    turns: list[list[float]] = [[] for _ in cases]
    runtime, limit_s = "", options.max_s + GRACE_S
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        folder = Path(temporary)
        _write(cases, folder, options, limit_s, extras)
        for program in racer.files():
            (folder / program.name).symlink_to(program)
        remote = runner.push(folder)
    try:
        for process in range(options.processes):
            first = process % len(cases)
            done = runner.run(racer.argv(remote, _job_name(first)), timeout_s=limit_s + START_S)
            answer = read_answer(done.returncode, done.stdout, done.stderr, model=cases[0].name, format=form)
            runtime = answer["runtime"]
            for place, found in zip(_order(cases, first), answer["turns_ns"], strict=True):
                turns[place] += found
            progress()
        device = runner.info()
    finally:
        runner.remove(remote)
    return Race(runtime, device, tuple(map(tuple, turns)))


def _order(cases: Sequence[Case], first: int) -> list[int]:
    """The places of the cases as they are loaded where ``first`` is: memory is laid out by it, which tells in the times."""
    places = list(range(len(cases)))
    return places[first:] + places[:first]


def _job_name(first: int) -> str:
    return f"race_{first}.json"


def _write(cases: Sequence[Case], folder: Path, options: RaceOptions, limit_s: float, extras: Mapping[str, Any]) -> None:
    """Writes the files, their inputs and a job for each order of loading, to which the launcher adds ``extras``."""
    models, inputs = [], []
    for place, case in enumerate(cases):
        models.append(f"model_{place}{case.format.suffix}")
        (folder / models[-1]).symlink_to(case.path)
        own = folder / f"inputs_{place}"
        own.mkdir()
        inputs.append([f"{own.name}/{name}" for name in save_inputs(own, case.inputs)])
    job = {
        "mode": "race",
        "format": cases[0].format.value,
        "threads": options.threads,
        "cores": BenchOptions(cores=options.cores).core_list(),
        "blocks": options.blocks,
        "turn_s": options.turn_s,
        "max_s": options.max_s,
        "limit_s": limit_s,
        **extras,
    }
    for first in range(min(options.processes, len(cases))):
        order = _order(cases, first)
        listed = {"models": [models[place] for place in order], "inputs": [inputs[place] for place in order]}
        (folder / _job_name(first)).write_text(json.dumps(job | listed), encoding="utf-8")


def _in_turns_of_processes(
    cases: Sequence[Case], runner: Runner, launcher: Launcher, options: RaceOptions, progress: Callable[[], None]
) -> Race:
    blocks = options.processes * options.blocks
    turns: list[list[float]] = [[] for _ in cases]
    bench = BenchOptions(
        threads=options.threads,
        cores=options.cores,
        processes=2 * blocks,
        min_samples=16,
        min_time_s=options.turn_s,
        max_secs=2 * options.max_s,
    )
    with ExitStack() as stack:
        places = [stack.enter_context(placed(case, runner, launcher, bench)) for case in cases]
        for _ in range(blocks):
            for place in [*range(len(places)), *reversed(range(len(places)))]:
                run = places[place].process()
                turns[place].append(statistics.median(run.samples_ns))
            progress()
        device = runner.info()
    return Race(places[0].runtime, device, tuple(map(tuple, turns)))
