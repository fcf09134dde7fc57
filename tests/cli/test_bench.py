"""`edgefold bench` and `compare`: gates that check or are refused, and figures that are no latency."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgefold.artifact import Format
from edgefold.device_bench import InstructionCount
from edgefold.device_bench.runners import fake
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice
from edgefold.errors import DeviceError
from edgefold.results import Code, DeviceInfo, to_json

Cli = Callable[..., Any]
Use = Callable[[FakeDevice], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes ``--device fake`` this device."""

    def chosen(device: FakeDevice) -> None:
        plain = fake.FakeRunner.__init__
        monkeypatch.setattr(
            fake.FakeRunner, "__init__", lambda self, given=None: plain(self, replace(device, pushed={}, jobs=[]))
        )

    return chosen


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--sustained", "1s", "--baseline", "b.json"), "--sustained gives a curve"),
        (("--sustained", "1s", "--fail-on", "slower:3%"), "--fail-on would be ignored"),
        (("--sustained", "1s", "--tool", "/bin/true"), "--sustained and --tool do not go together"),
        (("--sustained", "1s", "--keep", "--processes", "3"), "leave --processes and --keep out"),
        (("--fail-on", "slower:3%"), "none is given; add --baseline FILE"),
        (("--cpu", "cortex-a72"), "add --count instructions"),
        (("--tool", "/bin/true", "--keep"), "--keep would be ignored"),
        (("--tool", "/bin/true", "--worker", "native"), "--worker would be ignored"),
        (("--count", "instructions", "--tool", "/bin/true"), "--count and --tool do not go together"),
        (("--count", "instructions", "--device", "adb://NOSUCH"), "--device would be ignored"),
        (("--count", "instructions", "--device", "host", "--threads", "4"), "--threads would be ignored"),
        (("--count", "instructions", "--cores", "0"), "--cores would be ignored"),
        (("--count", "instructions", "--worker", "native"), "--worker would be ignored"),
        (("--count", "instructions", "--processes", "3"), "--processes would be ignored"),
        (("--count", "instructions", "--max-secs", "3"), "--max-secs would be ignored"),
        (("--count", "instructions", "--fail-on", "more:1%"), "none is given; add --baseline FILE"),
        (("--device", "fake", "--device", "fake"), "'fake' is given as two devices"),
    ],
)
def test_what_would_be_ignored_is_refused(cli: Cli, tiny: Path, args: tuple[str, ...], words: str) -> None:
    ended = cli("bench", tiny / "tiny.onnx", *args)
    assert ended.code == 2
    assert ended.stdout == ""
    assert words in ended.stderr


def test_two_names_of_one_device_are_one(cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "devices.toml").write_text('[here]\nurl = "host"\n')
    monkeypatch.setenv("EDGEFOLD_DEVICES", str(tmp_path / "devices.toml"))
    ended = cli("bench", tiny / "tiny.onnx", "--device", "host", "--device", "here")
    assert ended.code == 2
    assert "'host' and 'here' are given as two devices" in ended.stderr


COUNT = InstructionCount(
    artifact="tiny.onnx",
    artifact_sha256="0" * 64,
    format=Format.ONNX,
    runtime="onnxruntime 1.32.0",
    cpu="cortex-a76",
    counts={"insns": 1_000_000, "dot": 4},
    first={"insns": 1_500_000, "dot": 4},
    spread=2e-5,
    codes=(Code.EMULATED,),
)


@pytest.fixture
def counted(cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the gate by counts: what the baseline has, what is counted now, and more arguments."""

    def run(old: InstructionCount, new: InstructionCount, *args: str) -> Any:
        answers = iter((old, new))
        monkeypatch.setattr("edgefold.device_bench.count_instructions", lambda artifact, cpu: next(answers))
        stored = cli("bench", tiny / "tiny.onnx", "--count", "instructions", "--json")
        (tmp_path / "base.json").write_text(stored.stdout)
        return cli("bench", tiny / "tiny.onnx", "--count", "instructions", "--baseline", tmp_path / "base.json", *args)

    return run


def more(share: float, **fields: Any) -> InstructionCount:
    return replace(COUNT, counts={"insns": round(1_000_000 * (1 + share)), "dot": 4}, **fields)


@pytest.mark.parametrize(
    ("share", "rule", "code"),
    [
        (0.0005, ("--fail-on", "more:0.1%"), 0),
        (0.002, ("--fail-on", "more:0.1%"), 1),
        (0.002, ("--fail-on", "more:1%"), 0),
        (0.002, (), 1),
        (-0.2, (), 0),
    ],
)
def test_the_gate_by_instructions(counted: Callable[..., Any], share: float, rule: tuple[str, ...], code: int) -> None:
    ended = counted(COUNT, more(share), *rule)
    assert ended.code == code, ended.stderr
    assert f"takes {1 + share:.5f} times the instructions" in (ended.stderr if code else ended.stdout).replace("'", "")


def test_a_gate_in_json_speaks_on_stderr(counted: Callable[..., Any]) -> None:
    ended = counted(COUNT, more(0.0), "--json")
    assert ended.data["schema"] == "edgefold.InstructionCount/1"
    assert "takes 1.00000 times the instructions" in ended.stderr


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu": "cortex-a72"}, "core cortex-a76 and cortex-a72"),
        ({"format": Format.TFLITE}, "format onnx and tflite"),
        ({"runtime": "onnxruntime 2.0"}, "runtime onnxruntime 1.32.0 and onnxruntime 2.0"),
        ({"codes": (Code.EMULATED, Code.OUTPUT_MISMATCH)}, "is marked OUTPUT_MISMATCH"),
    ],
)
def test_counts_that_do_not_compare_are_refused(counted: Callable[..., Any], fields: dict[str, Any], words: str) -> None:
    ended = counted(COUNT, more(0.0, **fields))
    assert ended.code == 2
    assert words in ended.stderr


def test_counts_that_spread_too_much_ask_for_a_rule_that_can_hold(counted: Callable[..., Any]) -> None:
    noisy = more(0.0, spread=0.0024)
    ended = counted(COUNT, noisy)
    assert (ended.code, "count both again" in ended.stderr) == (2, False)
    assert "spreads by 0.24 % from one inference to the next, more than the rule's 0.1 %" in ended.stderr
    assert "ask for more, as in more:0.3%" in ended.stderr
    assert counted(COUNT, noisy, "--fail-on", "more:0.3%").code == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu": "cortex-a72"}, "core cortex-a72 and cortex-a76"),
        ({"format": Format.TFLITE}, "format tflite and onnx"),
        ({"codes": (Code.EMULATED, Code.OUTPUT_MISMATCH)}, "is marked OUTPUT_MISMATCH"),
        ({"spread": 0.0024}, "ask for more, as in more:0.3%"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_refused_before_the_counting(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("edgefold.device_bench.count_instructions", lambda artifact, cpu: pytest.fail("it was counted"))
    (tmp_path / "base.json").write_text(to_json(more(0.0, **fields)))
    ended = cli("bench", tiny / "tiny.onnx", "--count", "instructions", "--baseline", tmp_path / "base.json")
    assert (ended.code, ended.stdout) == (2, "")
    assert words in ended.stderr


def test_a_rule_of_the_other_kind_is_refused_before_any_work(
    cli: Cli, counted: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    ended = counted(COUNT, COUNT, "--fail-on", "slower:3%")
    assert (ended.code, ended.stdout) == (2, "")
    assert "rule 'slower:3%' is for times, and instruction counts are compared" in ended.stderr
    ended = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json", "--fail-on", "more:1%")
    assert (ended.code, ended.stdout) == (2, "")
    assert "rule 'more:1%' is for instruction counts, and times are compared" in ended.stderr


def test_a_baseline_of_the_other_kind_is_refused_before_any_work(
    cli: Cli, counted: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    assert counted(COUNT, COUNT).code == 0
    ended = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json")
    assert (ended.code, ended.stdout) == (2, "")
    words = "has schema 'edgefold.{}/1', expected 'edgefold.{}/1'; give a file of that kind"
    assert words.format("InstructionCount", "Measurement") in ended.stderr
    (tmp_path / "times.json").write_text(cli("bench", tiny / "tiny.onnx", "--device", "fake", "--json").stdout)
    ended = cli("bench", tiny / "tiny.onnx", "--count", "instructions", "--baseline", tmp_path / "times.json")
    assert (ended.code, ended.stdout) == (2, "")
    assert words.format("Measurement", "InstructionCount") in ended.stderr


def test_a_gate_that_lets_pass_says_by_how_much(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(cli("bench", tiny / "tiny.onnx", "--device", "fake", "--json").stdout)
    told = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json")
    assert told.code == 0, told.stderr
    words = "tiny.onnx on fake takes 1.000 times as long as its baseline (95 % interval 0.99"
    assert words in told.stdout
    told = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json", "--json")
    assert told.data["schema"] == "edgefold.Measurement/1"
    assert words in told.stderr


EMULATED = replace(QUIET_DEVICE, emulated=True)


def times(text: str) -> list[str]:
    """Every word that is a unit of time."""
    return [word for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split() if word in ("ns", "µs", "ms")]


def test_an_emulators_times_are_shown_nowhere(cli: Cli, tiny: Path, use: Use) -> None:
    use(FakeDevice(states=(EMULATED,)))
    table = cli("bench", tiny / "tiny.onnx", "--device", "fake")
    assert "emulated" in table.stdout
    assert times(table.stdout) == []
    lines = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake")
    assert "cannot tell" in lines.stdout
    assert "medians: emulated" in lines.stdout
    assert times(lines.stdout) == []
    data = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--json").data
    assert data["verdict"] == "cannot tell"
    assert "EMULATED" in data["codes"]
    assert data["ratio"]["value"] > 0


def test_an_emulated_curve_is_none_of_times(cli: Cli, tiny: Path, use: Use) -> None:
    use(FakeDevice(states=(EMULATED,)))
    curve = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--sustained", "0.01s")
    assert "speed kept: emulated (EMULATED OUTPUT_UNCHECKED)" in curve.stdout
    assert times(curve.stdout) == []
    data = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--sustained", "0.01s", "--json").data
    assert data["codes"] == ["EMULATED", "OUTPUT_UNCHECKED"]
    assert data["points"][0]["median_ns"] > 0


def test_an_unstable_figure_is_shown_as_its_interval_only(cli: Cli, tiny: Path, use: Use) -> None:
    use(FakeDevice(latency_ns=lambda model, process: 1e6 * (1 + process % 2)))
    table = cli("bench", tiny / "tiny.onnx", "--device", "fake").stdout
    assert "unstable [" in table
    codes = next(line for line in table.splitlines() if line.startswith("tiny.onnx on fake: "))
    assert "UNSTABLE" in codes
    assert "OUTPUT_UNCHECKED" in codes
    assert "…" not in table
    row = next(line for line in table.splitlines() if "unstable [" in line)
    # load, first, the two ends of the interval; no median, no p90
    assert len(times(row)) == 4


def test_the_device_of_a_comparison_can_be_told_what_runs_and_what_to_keep(
    cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def opened(device: str, **options: Any) -> Any:
        seen.update(options)
        return fake.FakeRunner()

    def launchers(runner: Any, worker: str) -> Any:
        seen["worker"] = worker
        raise DeviceError("far enough")

    monkeypatch.setattr("edgefold.device_bench.comparison.open_runner", opened)
    monkeypatch.setattr("edgefold.device_bench.comparison.Launchers", launchers)
    ended = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--worker", "native", "--keep")
    assert ended.code == 3
    assert (seen["worker"], seen["keep"]) == ("native", True)


def test_a_named_devices_ssh_config_counts_before_the_variable_and_the_option_before_both(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []

    def refused(target: str, *, config: Path | None, **options: Any) -> None:
        seen.append(config)
        raise DeviceError("far enough")

    monkeypatch.setattr("edgefold.device_bench.runners.ssh.SshRunner", refused)
    (tmp_path / "devices.toml").write_text('[pi]\nurl = "ssh://pi@board"\nssh_config = "/named"\n')
    monkeypatch.setenv("EDGEFOLD_DEVICES", str(tmp_path / "devices.toml"))
    monkeypatch.setenv("EDGEFOLD_SSH_CONFIG", "/variable")
    cli("devices", "pi")
    cli("devices", "ssh://pi@board")
    cli("devices", "pi", "--ssh-config", "/option")
    assert seen == [Path("/named"), Path("/variable"), Path("/option")]


def test_states_of_the_whole_run_are_codes_of_its_curve(cli: Cli, tiny: Path, use: Use) -> None:
    def late(**fields: Any) -> tuple[DeviceInfo, ...]:
        return (QUIET_DEVICE, replace(QUIET_DEVICE, **fields))

    use(FakeDevice(states=late(battery_percent=10, thermal_status=3)))
    data = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--sustained", "0.01s", "--json").data
    assert data["codes"] == ["THROTTLED", "LOW_BATTERY", "OUTPUT_UNCHECKED"]


def test_results_of_a_board_of_another_model_are_refused(cli: Cli, tiny: Path, tmp_path: Path, use: Use) -> None:
    use(FakeDevice(states=(replace(QUIET_DEVICE, model="Raspberry Pi 5"),)))
    stored = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--json").stdout
    data = json.loads(stored)
    data["device"]["model"] = "Raspberry Pi 4"
    (tmp_path / "base.json").write_text(json.dumps(data))
    ended = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json")
    assert ended.code == 2
    assert "model Raspberry Pi 4 and Raspberry Pi 5" in ended.stderr


def test_compare_says_where_it_keeps_its_files(cli: Cli, tiny: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.FakeRunner, "kept", "/fake/left")
    ended = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--keep", "--json")
    assert ended.data["schema"] == "edgefold.Comparison/1"
    assert "kept on fake: /fake/left\n" in ended.stderr
    use(FakeDevice(answer=lambda answer: Completed(-11, b"", b"")))
    ended = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--keep")
    assert ended.code != 0
    assert "kept on fake: /fake/left\n" in ended.stderr
