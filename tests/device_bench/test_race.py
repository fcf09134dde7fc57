"""Several files against each other: in one process on this machine, in turns of processes on a device that holds one model."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.device_bench.cases import make_case
from edgefold.device_bench.closing import decide
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import Race, RaceOptions, race
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.device_bench.runners.host import HostRunner
from edgefold.errors import RuntimeFailure, UsageError
from edgefold.runtime import worker_timing
from edgefold.runtime.protocol import RACE

TINY = Path(__file__).parents[1] / "data" / "tiny"


def made(*turns: tuple[float, ...]) -> Race:
    return Race("fake 1.0", QUIET_DEVICE, turns)


def test_a_ratio_is_the_geometric_mean_over_blocks_and_a_linear_drift_cancels_out() -> None:
    """Turns A B B A with a time that grows by a factor each turn: B over A is 2 in every block."""
    drift = 1.1
    found = made((1.0, drift**3, drift**4, drift**7), (2 * drift, 2 * drift**2, 2 * drift**5, 2 * drift**6))
    assert found.blocks == 2
    ratio = found.ratio(1, 0)
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0)
    uneven = made((1.0, 1.0, 1.0, 1.0), (1.0, 4.0, 1.0, 1.0))
    assert uneven.ratio(1, 0).value == pytest.approx(math.sqrt(2.0))
    assert uneven.ratio(1, 0, blocks=[1]).value == pytest.approx(1.0)
    assert uneven.median_ns(1, blocks=[0]) == pytest.approx(2.5)


FLAT = (100.0,) * 12


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ((100.0, 100.0), 0),
        ((100.0, 99.0), 0),  # within the tie
        ((100.0, 90.0), 1),
        ((100.0, 90.0, 80.0), 2),
        ((100.0, 130.0, 120.0), 0),
    ],
)
def test_a_uniform_form_wins_only_beyond_the_tie(times: tuple[float, ...], winner: int) -> None:
    place, reason = decide(made(*[(time,) * 12 for time in times]), ["auto", "dense", "split"][: len(times)])
    assert place == winner
    assert ("for all layers takes" in reason) == bool(winner)


def test_a_noisy_gain_does_not_win() -> None:
    noisy = tuple(80.0 if turn % 4 < 2 else 110.0 for turn in range(12))
    assert made(FLAT, noisy).ratio(1, 0).value < 0.95
    assert decide(made(FLAT, noisy), ["auto", "dense"])[0] == 0


@pytest.mark.parametrize(("format", "processes"), [("onnx", 2), ("tflite", 1), ("pte", 1)])
def test_a_race_on_this_machine(format: str, processes: int) -> None:
    cases = [make_case(TINY / f"tiny.{format}", seed=0)] * 3
    steps: list[int] = []
    with HostRunner() as runner:
        options = RaceOptions(processes=processes, blocks=2, turn_s=0.0)
        found = race(cases, runner, Launchers(runner), options, progress=lambda: steps.append(1))
    assert [len(turns) for turns in found.turns_ns] == [4 * processes] * 3
    assert found.blocks == 2 * processes
    assert len(steps) == processes
    assert all(0 < found.lowest_ns(place) <= found.median_ns(place) for place in range(3))
    assert found.device.url == "host"
    assert found.runtime.split()[0] in ("onnxruntime", "ai-edge-litert", "executorch")


def test_turns_settle_first_and_the_ends_of_a_block_go_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Six runs of each turn do not count, and no model has the ends, where it follows itself, in every block."""
    spec = importlib.util.spec_from_file_location("race", RACE)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    runs: list[str] = []

    class Model:
        """Writes down each run."""

        runtime = "fake 1.0"

        def __init__(self, name: str) -> None:
            self.name = name

        def bind(self, inputs: object) -> None:
            """Has no inputs."""

        def invoke(self) -> None:
            runs.append(self.name)

    class Slow:
        """Each run of a model in a row is faster than the one before, down to 1 ms after six."""

        settle, inputs = staticmethod(worker_timing.settle), ()
        take_turn = program.Contestant.take_turn

        def __init__(self, worker: object, form: str, path: Path, arrays: list[object], threads: int) -> None:
            self.model = Model(path.name)
            self.turns: list[float] = []

        def turn(self, clock: object, least: int, seconds: float) -> list[int]:
            samples = []
            for _ in range(least):
                self.model.invoke()
                row = next((place for place, name in enumerate(reversed(runs)) if name != self.model.name), len(runs))
                samples.append(1_000_000 + 100_000 * max(0, 7 - row))
            return samples

    monkeypatch.setattr(program, "Contestant", Slow)
    job = {"format": "onnx", "models": ["a", "b", "c"], "inputs": [[], [], []], "blocks": 3, "turn_s": 0.0, "max_s": 60.0}
    found = program.race(job, tmp_path)
    assert found["turns_ns"] == [[1_000_000.0] * 6] * 3
    turns = [name for name, _ in itertools.groupby(runs)]
    assert "".join(turns[3:]) == "abcba" + "bcacb" + "cabac"


def test_each_process_begins_to_load_with_another_file(tmp_path: Path) -> None:
    """The files keep their places in the result, whatever the order in which a process loads them."""
    cases = [make_case(TINY / "tiny.onnx", seed=0)] * 3
    loaded: list[list[str]] = []

    class Recorder(HostRunner):
        def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
            if not argv[-1].endswith(".json"):
                return super().run(argv, timeout_s=timeout_s)  # a look at the device
            job = json.loads(Path(argv[-1]).read_text(encoding="utf-8"))
            loaded.append(job["models"])
            turns = [[float(name[len("model_")]) + 1.0] * 2 for name in job["models"]]
            answer = {"mode": "race", "runtime": "fake 1.0", "turns_ns": turns, "ok": True, "edgefold": 1}
            return Completed(0, json.dumps(answer).encode(), b"")

    with Recorder() as runner:
        found = race(cases, runner, Launchers(runner), RaceOptions(processes=4, blocks=1))
    assert [models[0] for models in loaded] == ["model_0.onnx", "model_1.onnx", "model_2.onnx", "model_0.onnx"]
    assert found.turns_ns == ((1.0,) * 8, (2.0,) * 8, (3.0,) * 8)


def test_a_device_that_holds_one_model_takes_turns_of_processes() -> None:
    device = FakeDevice(latency_ns=lambda model, process: 1e6, spread=0.0)
    case = make_case(TINY / "tiny.onnx", seed=0)
    with FakeRunner(device) as runner:
        found = race([case, case], runner, Launchers(runner), RaceOptions(processes=1, blocks=3))
    assert len(device.jobs) == 3 * 4
    assert found.turns_ns == ((1e6,) * 6,) * 2
    assert found.runtime == "fake 1.0"


def test_files_of_two_formats_do_not_race() -> None:
    cases = [make_case(TINY / f"tiny.{format}", seed=0) for format in ("onnx", "tflite")]
    with FakeRunner() as runner, pytest.raises(UsageError, match="one format, found onnx, tflite"):
        race(cases, runner, Launchers(runner))


def test_a_file_that_the_runtime_refuses_is_told(tmp_path: Path) -> None:
    case = make_case(TINY / "tiny.onnx", seed=0)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with HostRunner() as runner, pytest.raises(RuntimeFailure, match=r"refused 'tiny\.onnx'"):
        race([case, replace(case, path=tmp_path / "broken.onnx")], runner, Launchers(runner), RaceOptions(processes=1, blocks=1))


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"processes": 0}, {"max_s": 0.0}, {"turn_s": -1.0}, {"threads": 0}])
def test_what_is_no_race_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RaceOptions(**wrong)  # type: ignore[arg-type]  # numbers of either kind


def test_the_program_is_python_3_9_and_needs_only_numpy_and_the_worker() -> None:
    tree = ast.parse(RACE.read_text(), feature_version=(3, 9))
    imports = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    sources = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    known = {"__future__", "collections", "gc", "importlib", "json", "numpy", "os", "pathlib", "signal", "sys", "time", "typing"}
    assert imports | sources <= known
