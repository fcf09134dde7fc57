"""Measures what each lowering of a layer costs on a device, and keeps it for all networks that have such a layer.

Every form of a layer is written by the project's own emitters, and all forms run against each other on the device
(`edgefold.device_bench.race`). The fastest turn counts: on one thread it is CPU time, which other work on the device can only
lengthen. The dense form runs twice under two names; if its two times differ by more than `MAX_NOISE`, the layer is
measured once more, and left out if that is no better.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgefold.artifact import Format, Precision
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.errors import UsageError
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.candidates import MAX_SPLIT
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.layer import layer_program, repeats
from edgefold.export.lower.lower import lower
from edgefold.export.lower.tables.cache import cached_table, save_table
from edgefold.export.plan import Lowering
from edgefold.export.program import Program
from edgefold.results import DeviceInfo

MAX_NOISE: Final = 0.05
TRIES: Final = 2
RACE: Final = RaceOptions(processes=1, blocks=20, turn_s=0.004)
PRECISIONS: Final = (Precision.FP32, Precision.INT8)


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """The times of one layer's forms. ``noise`` is how far the two times of the dense form are apart, as a share."""

    geometry: LayerGeometry
    format: Format
    precision: Precision
    runtime: str
    times_ns: dict[Lowering, float]
    noise: float

    @property
    def kept(self) -> bool:
        """Whether the times are good enough for a table."""
        return self.noise <= MAX_NOISE

    def table(self, source: str, device: DeviceInfo) -> CostTable:
        """The same as a table."""
        times = {(str(self.geometry), form, self.format, self.precision): ns for form, ns in self.times_ns.items()}
        return CostTable(source, device.cpu, 1, {self.format.value: self.runtime}, times)


def forms(geometry: LayerGeometry) -> list[Lowering]:
    """The lowerings of a layer that are measured; none where it has one form only."""
    if len(geometry.groups) < 2:
        return []
    grouped = [Lowering.GROUPED] if geometry.groupable else []
    return [Lowering.DENSE, *grouped, *([Lowering.SPLIT] if len(geometry.groups) <= MAX_SPLIT else [])]


def layer_geometries(program: Program) -> list[LayerGeometry]:
    """The layers of a canonical network that can be computed in more than one way."""
    plan = lower(program, format=Format.ONNX, precision=Precision.FP32, lowering=Lowering.DENSE).plan
    return [LayerGeometry.parse(layer.geometry) for layer in plan.layers if len(layer.candidates) > 1]


def measure_layer(
    geometry: LayerGeometry, format: Format, precision: Precision, runner: Runner, launchers: Launchers
) -> LayerCosts:
    """The times of one layer's forms on an open device.

    Raises:
        RuntimeFailure: a converter or the runtime broke.
        DeviceError: the device cannot be reached any more.
    """
    names = forms(geometry)
    program = layer_program(geometry, precision)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        cases = []
        for name in names:
            out = Path(folder) / f"{name}{format.suffix}"
            lowered = lower(program, format=format, precision=precision, lowering=name)
            cases.append(make_case(get_emitter(format).emit(lowered, EmitOptions(), out), seed=0))
        cases.append(cases[0])
        for _ in range(TRIES):
            found = race(cases, runner, launchers, RACE)
            *times, again = (found.lowest_ns(place) for place in range(len(cases)))
            noise = abs(again / times[0] - 1.0)
            if noise <= MAX_NOISE:
                break
    scaled = {name: ns / repeats(geometry) for name, ns in zip(names, times, strict=True)}
    return LayerCosts(geometry, format, precision, found.runtime, scaled, noise)


def knows(table: CostTable, geometry: LayerGeometry, format: Format, precision: Precision) -> bool:
    """Whether a table has all forms of a layer."""
    return all(table.cost_ns(geometry, form, format, precision) is not None for form in forms(geometry))


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """A device's times for some layers: ``table`` has all that are known, ``measured`` were missing, ``noisy`` were left out."""

    table: CostTable
    measured: int
    known: int
    noisy: tuple[LayerCosts, ...]


def measure_costs(
    geometries: Iterable[LayerGeometry],
    device: str = "host",
    *,
    formats: Sequence[Format] = tuple(Format),
    precisions: Sequence[Precision] = PRECISIONS,
    again: bool = False,
    ssh_config: Path | None = None,
    stage: Callable[[int], None] = lambda steps: None,
    progress: Callable[[], None] = lambda: None,
) -> MeasuredCosts:
    """Measures the layers that the device's table lacks; each is kept as soon as it is there, so that a new call goes on.

    Args:
        geometries: of layers; those with one form only are skipped.
        device: ``host``, ``ssh://user@board[:port]``, ``adb://SERIAL``.
        formats: which runtimes to measure.
        precisions: which numbers to measure with.
        again: measure what is known too, and forget the rest of the table.
        ssh_config: another configuration file for OpenSSH.
        stage: told how many layers there are to measure.
        progress: called after each of them.

    Raises:
        UsageError: the device is emulated or fake: its times say nothing about any device.
        RuntimeFailure: a converter or the runtime broke.
        DeviceError: the device cannot be reached.
    """
    if device == "fake":
        raise UsageError(
            "the fake device draws its times at random, so they cannot choose a lowering; give host, ssh:// or adb://"
        )
    layers = list(dict.fromkeys(geometry for geometry in geometries if forms(geometry)))
    wanted = [(layer, form, precision) for layer in layers for form in formats for precision in precisions]
    with open_runner(device, ssh_config=ssh_config) as runner:
        info = runner.info()
        if info.emulated:
            raise UsageError(
                f"device '{device}' is emulated: its times are not those of any device, so they cannot choose a lowering; "
                "measure on the board or phone itself"
            )
        source = f"measured on {device}"
        table = (None if again else cached_table(device)) or CostTable(source, info.cpu, 1, {})
        missing = [key for key in wanted if not knows(table, *key)]
        stage(len(missing))
        noisy = []
        launchers = Launchers(runner)
        for layer, form, precision in missing:
            found = measure_layer(layer, form, precision, runner, launchers)
            if found.kept:
                if table.runtimes.get(form.value, found.runtime) != found.runtime:
                    table = table.without({form})  # the device has got another version of the runtime
                table = replace(table.merged(found.table(source, info)), cpu=info.cpu)
                save_table(device, table)
            else:
                noisy.append(found)
            progress()
    return MeasuredCosts(table, len(missing) - len(noisy), len(wanted) - len(missing), tuple(noisy))
