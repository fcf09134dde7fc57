"""Files, the baseline gate, the history, several devices, and the long run."""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgefold.artifact import sha256_of
from edgefold.device_bench.baseline import against_baseline, check_baseline, parse_rule
from edgefold.device_bench.benchmark import bench_case
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.endurance import sustained
from edgefold.device_bench.files import load_measurements, save_measurements
from edgefold.device_bench.fleet import RETRY_PAUSE_S, bench_devices
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.device_bench.store import history, recall, remember, remembered
from edgefold.device_bench.trend import by_series, series_name, sparkline, trend_svg
from edgefold.errors import ArtifactError, CheckError, DeviceError, OutputError, UsageError
from edgefold.results import Code, DeviceInfo, Measurement, Verdict

Measure = Callable[[float], Measurement]
OPTIONS = BenchOptions(gate_max_s=0)


@pytest.fixture(scope="module")
def measure(tiny: Path) -> Measure:
    """Makes a measurement of tiny.onnx with this median, in ns."""
    case = make_case(tiny / "tiny.onnx", seed=0)

    def made(latency_ns: float) -> Measurement:
        device = FakeDevice(latency_ns=lambda model, process: latency_ns, seed=int(latency_ns))
        with FakeRunner(device) as runner:
            return bench_case(case, runner, OPTIONS, Launchers(runner))

    return made


def test_files_hold_one_or_many(measure: Measure, tmp_path: Path) -> None:
    results = [measure(1e6), measure(2e6)]
    save_measurements(tmp_path / "two.json", results)
    assert load_measurements(tmp_path / "two.json") == results
    with pytest.raises(OutputError, match="exists already"):
        save_measurements(tmp_path / "two.json", results)
    for content, message in (
        ("[3]", "is not a file of measurements"),
        ("{", "is not a file of measurements"),
        ("{}", "has schema 'None', .* give a file of that kind"),
        ('{"schema": "edgefold.Measurement/99"}', "write it again with this version"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ArtifactError, match=message):
            load_measurements(tmp_path / "bad.json")
    with pytest.raises(ArtifactError, match="do not exist; make them with: edgefold bench"):
        load_measurements(tmp_path / "none.json")


def test_the_gate_lets_pass_what_is_not_slower(measure: Measure) -> None:
    (same,) = check_baseline([measure(1.002e6)], [measure(1e6)], "slower:3%")
    assert same.verdict is Verdict.NO_DIFFERENCE
    (faster,) = check_baseline([measure(0.8e6)], [measure(1e6)], "slower:3%")
    assert faster.verdict is Verdict.FASTER


def test_the_gate_stops_what_is_slower(measure: Measure) -> None:
    with pytest.raises(CheckError, match=r"'tiny.onnx' takes 1\.0[56]\d times as long .* allowed by 'slower:3%' is less"):
        check_baseline([measure(1.06e6)], [measure(1e6)], "slower:3%")
    assert against_baseline([measure(1.06e6)], [measure(1e6)], "slower:10%")[0].verdict is Verdict.NO_DIFFERENCE


def test_the_gate_refuses_what_does_not_compare(measure: Measure) -> None:
    with pytest.raises(UsageError, match="threads 1 and 2"):
        check_baseline([replace(measure(1e6), threads=2)], [measure(1e6)], "slower:3%")
    with pytest.raises(UsageError, match=r"the baseline has no 'other.onnx' on fake; it has tiny.onnx on fake"):
        check_baseline([replace(measure(1e6), artifact="other.onnx")], [measure(1e6)], "slower:3%")


@pytest.mark.parametrize("rule", ["slower", "slower:3", "faster:3%", "slower:0%", "slower:-1%", "slower:3%;x"])
def test_rules_that_cannot_be_read(rule: str) -> None:
    with pytest.raises(UsageError, match="expected slower:PERCENT%"):
        parse_rule(rule)
    assert parse_rule(" slower:2.5% ") == 0.025


def test_the_history_is_kept_and_asked(measure: Measure, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.sqlite3"
    first = replace(measure(1e6), date="2026-01-01T00:00:00+00:00")
    second = replace(measure(2e6), date="2026-01-02T00:00:00+00:00", artifact_sha256="f" * 64)
    other = replace(measure(3e6), artifact="other.onnx")
    remember([second, other], path)
    remember([first], path)
    entries = history("tiny.onnx", "fake", path=path)
    assert [entry.median_ns for entry in entries] == [first.median_ns, second.median_ns]
    assert [entry.changed for entry in entries] == [False, True]
    assert entries[0].codes == first.codes
    assert len(history(path=path)) == 3
    assert len(history("f" * 10, path=path)) == 1
    assert history("tiny.onnx", "ssh://board", path=path) == []
    assert recall(entries[0].id, path) == first


def test_a_file_is_found_by_content_and_by_name(measure: Measure, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "history"
    here = measure(1e6)
    assert here.artifact_sha256 == sha256_of(tiny / "tiny.onnx")
    remember([here, replace(here, artifact="renamed.onnx"), replace(here, artifact_sha256="f" * 64)], path)
    remember([replace(here, artifact="other.onnx", artifact_sha256="f" * 64)], path)
    found = [(entry.artifact, entry.artifact_sha256[0]) for entry in history(tiny / "tiny.onnx", path=path)]
    digit = here.artifact_sha256[0]
    assert found == [("tiny.onnx", digit), ("renamed.onnx", digit), ("tiny.onnx", "f")]
    assert history(str(tiny / "tiny.onnx"), path=path) == history(tiny / "tiny.onnx", path=path)
    # A file that is gone has its name only.
    assert len(history("old/folder/tiny.onnx", path=path)) == 2
    assert len(history("F" * 8, path=path)) == 2
    assert set(remembered(path)) == {(name, "fake") for name in ("tiny.onnx", "renamed.onnx", "other.onnx")}


def test_a_device_is_found_by_its_name_and_a_phone_without_its_serial(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, here = tmp_path / "history", measure(1e6)
    urls = ["ssh://pi@bench.local", "adb://ONE", "adb://TWO", "fake"]
    remember([replace(here, device=replace(here.device, url=url)) for url in urls], path)
    (tmp_path / "devices.toml").write_text('[pi]\nurl = "ssh://pi@bench.local"\n[phone]\nurl = "adb://"\n')
    monkeypatch.setenv("EDGEFOLD_DEVICES", str(tmp_path / "devices.toml"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def found(device: str) -> list[str]:
        return [entry.device for entry in history(device=device, path=path)]

    assert found("pi") == found("ssh://pi@bench.local") == ["ssh://pi@bench.local"]
    assert found("adb://") == found("phone") == ["adb://ONE", "adb://TWO"]
    assert found("fake") == ["fake"]
    monkeypatch.setenv("ANDROID_SERIAL", "TWO")
    assert found("adb://") == found("phone") == ["adb://TWO"]
    with pytest.raises(UsageError, match="unknown device 'phona'; did you mean 'phone'"):
        found("phona")


def test_histories_that_cannot_be_used(measure: Measure, tmp_path: Path) -> None:
    assert history(path=tmp_path / "none") == []
    (tmp_path / "text").write_text("not a database, only text that is long enough to be looked at" * 20)
    with pytest.raises(ArtifactError, match="is not a history of measurements"):
        history(path=tmp_path / "text")
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ArtifactError, match="version 9, this program knows 1"):
        history(path=newer)
    with pytest.raises(OutputError, match="cannot be written"):
        remember([measure(1e6)], tmp_path / "text" / "below")
    with pytest.raises(ArtifactError, match="has no measurement 7"):
        recall(7, tmp_path / "none")


def test_what_does_not_compare_is_not_joined_by_a_line(measure: Measure, tmp_path: Path) -> None:
    path, here = tmp_path / "history", measure(1e6)
    changes: list[dict[str, Any]] = [
        {},
        {"artifact": "other.onnx"},
        {"device": replace(here.device, url="ssh://board")},
        {"runtime": "onnxruntime 0.1"},
        {"threads": 2},
        {"codes": (Code.EMULATED,), "runtime": "emulated"},
    ]
    for number, sha256 in enumerate(["0" * 64, "1" * 64]):
        dated = replace(here, date=f"2026-01-0{number + 1}T00:00:00+00:00", artifact_sha256=sha256)
        remember([replace(dated, **change) for change in changes], path)
    entries = history(path=path)
    # Each series' second file is another one.
    assert [entry.changed for entry in entries] == [False] * 6 + [True] * 6
    series = by_series(entries)
    assert [len(each) for each in series] == [2] * 5
    assert not any(Code.EMULATED in entry.codes for each in series for entry in each)
    root = ET.fromstring(trend_svg(entries))
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2] * 5
    words = "".join(root.itertext())
    assert "2 are no latencies (emulated or unstable)" in words
    for each in series:
        assert series_name(each[0]) in words
    only = [entry for entry in entries if not entry.is_latency]
    assert (sparkline(only), "no latencies" in trend_svg(only)) == ("", True)


def test_the_trend_as_a_picture(measure: Measure, tmp_path: Path) -> None:
    path = tmp_path / "history"
    dated = [replace(measure(1e6 * (1 + i)), date=f"2026-01-0{i + 1}T00:00:00+00:00", artifact="<a&b>.onnx") for i in range(3)]
    remember([*dated[:2], replace(dated[2], artifact_sha256="0" * 64)], path)
    entries = history(path=path)
    assert sparkline(entries) == "▁▅█"
    root = ET.fromstring(trend_svg(entries))
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    heights = [float(circle.attrib["cy"]) for circle in circles]
    assert heights == sorted(heights, reverse=True)
    assert [("stroke" in circle.attrib) for circle in circles] == [False, False, True]
    assert (sparkline([]), ET.fromstring(trend_svg([])).tag) == ("", "{http://www.w3.org/2000/svg}svg")


class Flaky(FakeRunner):
    """Drops out while the second artifact is measured, as often as it was told to."""

    failures = 0

    def run(self, argv: list[str], *, timeout_s: float) -> Completed:  # type: ignore[override]  # a list is all that it gets
        if type(self).failures and "bench tiny.tflite" in self.device.jobs:
            type(self).failures -= 1
            raise DeviceError("cable pulled")
        return super().run(argv, timeout_s=timeout_s)


def test_a_device_that_drops_out_is_tried_again_and_the_others_finish(tiny: Path) -> None:
    shared = {name: FakeDevice(seed=i) for i, name in enumerate(("good", "back", "gone"))}

    class Back(Flaky):
        failures = 1

    class Gone(Flaky):
        failures = 9

    kinds = {"good": FakeRunner, "back": Back, "gone": Gone}
    pauses: list[float] = []
    good, back, gone = bench_devices(
        [tiny / "tiny.onnx", tiny / "tiny.tflite"],
        list(kinds),
        OPTIONS,
        open_device=lambda name: kinds[name](shared[name]),
        wait=pauses.append,
    )
    # One before each second attempt.
    assert pauses == [RETRY_PAUSE_S] * 2
    assert (len(good.measurements), good.error, good.attempts) == (2, "", 1)
    assert ([each.artifact for each in back.measurements], back.attempts) == (["tiny.onnx", "tiny.tflite"], 2)
    assert (len(gone.measurements), gone.error, gone.attempts) == (1, "cable pulled", 2)


def test_a_runtime_that_fails_is_not_tried_again(tiny: Path) -> None:
    broken = FakeDevice(answer=lambda answer: Completed(-6, b"", b""))
    (result,) = bench_devices([tiny / "tiny.onnx"], ["x"], OPTIONS, open_device=lambda name: FakeRunner(broken))
    assert (result.attempts, result.measurements) == (1, ())
    assert "SIGABRT" in result.error


def test_the_long_run_shows_throttling(tiny: Path) -> None:
    def heated(number: int) -> DeviceInfo:
        return replace(QUIET_DEVICE, temperature_c=35.0 + number)

    slowing = FakeDevice(
        latency_ns=lambda model, process: 1e6 * (1.0 if process < 5 else 1.3), states=[heated(n) for n in range(20)]
    )
    ticks = iter(range(0, 100_000, 15))
    result = sustained(tiny / "tiny.onnx", minutes=5, runner=FakeRunner(slowing), clock=lambda: float(next(ticks)))
    assert len(result.points) == 10
    assert result.kept_share == pytest.approx(1 / 1.3, rel=0.02)
    assert result.throttled
    assert result.points[-1].temperature_c == 35.0 + 10  # the first state is from before
    assert Code.THROTTLED in result.codes
    steady = sustained(tiny / "tiny.onnx", minutes=1, runner=FakeRunner(), clock=lambda: float(next(ticks)))
    assert not steady.throttled
    assert steady.codes == (Code.OUTPUT_UNCHECKED,)


def test_codes_survive_the_history(measure: Measure, tmp_path: Path) -> None:
    remember([replace(measure(1e6), codes=(Code.EMULATED, Code.LOADED))], tmp_path / "h")
    assert history(path=tmp_path / "h")[0].codes == (Code.EMULATED, Code.LOADED)
